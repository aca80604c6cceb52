"""report: the page, what it needs, and every refusal before anything is written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli.conftest import cappuccino, one_clear_error
from helpers.pages import columns_named

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture
def planned(workspace):
    done = cappuccino("plan", workspace / "instance.json", "-o", workspace / "plan.json", "--time-limit", 1)
    assert done.code == 0, done.err
    return workspace


def report(workspace, *options):
    files = workspace / "plan.json", "--instance", workspace / "instance.json"
    return cappuccino("report", *files, "-o", workspace / "report.html", *options)


def run_of(workspace):
    """Write a trace and metrics as a run would leave them; return the options that name them."""
    trace, metrics = workspace / "trace.json", workspace / "metrics.jsonl"
    files = workspace / "plan.json", "--instance", workspace / "instance.json"
    assert cappuccino("simulate", *files, "--trace", trace).code == 0
    document = json.loads(trace.read_text())
    document["otherData"]["kind"] = "measured"
    trace.write_text(json.dumps(document))
    event = {"time_s": 1.0, "kind": "train", "learning_rate": 1e-4, "grad_norm": None, "tokens": 9}
    events = [event | {"adapter": name, "step": j, "loss": 2.0 / (j + 1)} for name in "ab" for j in range(2)]
    metrics.write_text("".join(json.dumps(e) + "\n" for e in events))
    return "--trace", trace, "--metrics", metrics


def test_the_page_holds_the_plan_and_loads_nothing(planned):
    done = report(planned, *run_of(planned), "--json")
    assert done.code == 0, done.err
    page = planned / "report.html"
    assert done.json == {"page": str(page), "bytes": page.stat().st_size, "checked": True}
    html, plan = page.read_text(), json.loads((planned / "plan.json").read_text())
    for text in (f"{plan['gpu_time_s']:.4g} GPU-s", f"{plan['lower_bound_s']:.4g} GPU-s", "checked", "valid"):
        assert text in html
    count = sum(len(p) for r in plan["replicas"] for p in r["programs"])
    for name in ("predicted", "measured"):
        assert len(set(columns_named(html, f"operations-{name}")["operation"])) == count
    assert f"{count} of {count} operations shown" in html
    tags = re.findall(
        r"<(?:script|link|img|iframe|source|object)\b[^>]*>", re.sub(r"(?s)(<script[^>]*>).*?</script>", r"\1", html)
    )
    assert len(tags) >= 4
    assert not [tag for tag in tags if re.search(r"\s(?:src|href)=(?!\"data:)", tag)]
    assert "page " in report(planned).out


def test_an_invalid_plan_has_no_page(planned):
    plan = json.loads((planned / "plan.json").read_text())
    plan["gpu_time_s"] *= 2
    (planned / "plan.json").write_text(json.dumps(plan))
    one_clear_error(report(planned), "plan.json", "invalid plan", "gpu_time_s")
    assert not (planned / "report.html").exists()


def test_inputs_that_do_not_belong_are_one_error(planned):
    run_of(planned)
    metrics, trace = planned / "metrics.jsonl", planned / "trace.json"
    one_clear_error(report(planned, "--metrics", planned / "none.jsonl"), "none.jsonl", "is no file")
    metrics.write_text(metrics.read_text().replace('"b"', '"other"'))
    one_clear_error(report(planned, "--metrics", metrics), "metrics.jsonl", '"other"')
    metrics.write_text("nothing\n")
    one_clear_error(report(planned, "--metrics", metrics), "metrics.jsonl", "no events")
    trace.write_text(trace.read_text().replace('"measured"', '"simulated"'))
    one_clear_error(report(planned, "--trace", trace), "trace.json", "otherData.kind")
    one_clear_error(report(planned, "--trace", planned / "none.json"), "none.json")
    one_clear_error(report(planned, "-o", planned), "is a folder")
    assert not (planned / "report.html").exists()


def test_without_bokeh_the_error_says_what_to_install(planned, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    one_clear_error(report(planned), '"bokeh"', "[report]")
    assert not (planned / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
def test_a_browser_shows_it_without_an_error(planned, tmp_path):
    assert report(planned, *run_of(planned)).code == 0
    page = planned / "report.html"
    probe = """<script>
    window.addEventListener("error", (e) => console.error("PROBE " + e.message));
    const wait = () => {
      if (document.documentElement.dataset.ready !== "yes") { setTimeout(wait, 50); return; }
      document.querySelector("input[name=kind][value='1']").click();
      document.getElementById("switch").click();
      const tip = [...Bokeh.documents[0].all_models].find((m) => m.type === "CustomJSHover");
      const words = ["operation", "stage", "time", "tokens", "holds"];
      document.title = words.map((word) => tip.format(0, word, { index: 0 })).join(" | ");
    };
    wait();
    </script></head>"""
    page.write_text(page.read_text().replace("</head>", probe, 1))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--enable-unsafe-swiftshader", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'chromium'}", "--virtual-time-budget=10000", "--dump-dom"]
    # no address but this machine's is reached: whatever the page asked for would be an error
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"HOME": str(tmp_path)})
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert any("document idle" in line for line in said)
    assert not [line for line in said if re.search(r"error|exception|PROBE|ERR_", line, re.IGNORECASE)]
    title = re.search("<title>(.*)</title>", done.stdout).group(1)
    assert re.fullmatch(
        r"forward of micro-batch \d+ \| (replica 0, )?stage 0 \| 0\.000 s to [\d.]+ s, takes [\d.]+ s \| \d+ \| "
        r"[ab] step 0: \d samples?, \d+ tokens.*",
        title,
    ), title
    shown, total = re.search(r'id="shown">(\d+) of (\d+) operations', done.stdout).groups()
    plan = json.loads((planned / "plan.json").read_text())
    operations = [op for r in plan["replicas"] for p in r["programs"] for op in p]
    assert (int(shown), int(total)) == (sum(op[0] != "B" for op in operations), len(operations))
