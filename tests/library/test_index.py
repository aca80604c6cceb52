"""The shipped library agrees with its files; what is known of an entry only ever gets better, and never contradicts."""

import dataclasses
import json
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
from helpers.builders import make_costs, make_instance

from cappuccino.costs import MemoryModel, SmoothMaximum, fit_costs, read_cost_table
from cappuccino.errors import InputError
from cappuccino.instances import generate_index
from cappuccino.instances.generate_index import generate_library
from cappuccino.library.index import INDEX_NAME, SHIPPED, Library, cost_probes, least_gpus
from cappuccino.library.merge_rules import require_no_contradiction, updated_entry
from cappuccino.library.records import (
    BestKnown,
    ContradictionError,
    CostProbe,
    Entry,
    EntryFile,
    EntryOptions,
    EntryResult,
    Finding,
    Probes,
    Reference,
    Size,
)

LIBRARY = Library.load()
PROBES = {"x": (CostProbe(num_stages=2, slots_s=(0.5, 1.0, 8.0) * 2, max_tokens=1000),)}
OTHER_PROBES = {"x": (CostProbe(num_stages=2, slots_s=(0.5, 1.0, 8.1) * 2, max_tokens=1000),)}


def run(
    value: float, bound: float | None, seed: int = 0, probes: dict[str, Probes] = PROBES, reference: float = 1000.0
) -> EntryResult:
    return EntryResult(
        value=value,
        bound=bound,
        costs=probes,
        reference=Reference(value=reference),
        wall_time_s=1.0,
        seed=seed,
        cappuccino="1.2.3",
    )


def finding(value: float, seed: int = 0) -> Finding:
    return Finding(value=value, cappuccino="0.0.1", wall_time_s=3.0, seed=seed)


def entry_of(known: BestKnown | None = None) -> Entry:
    return Entry(
        name="e",
        kind="tiny",
        instance=EntryFile(file="e.json", sha256="0" * 64),
        size=Size(adapters=1, steps=1, samples=1, gpus={"x": 1}),
        options=EntryOptions(),
        costs=None if known is None else PROBES,
        best_known=known,
    )


KNOWN = entry_of(BestKnown.of(finding(100.0, 7), finding(90.0, 8)))


def test_the_library_has_every_kind_and_size():
    files = {e.instance.file for e in LIBRARY.entries}
    assert len(files) >= 24
    kinds = {e.kind for e in LIBRARY.entries}
    assert kinds >= {"tiny", "seed", "mixed", "deep pipeline", "many adapters", "tight memory", "long tails"}
    assert kinds >= {"mixed pools", "deadline", "makespan", "padded layout", "full epoch"}
    assert {e.size.adapters for e in LIBRARY.entries} >= {100, 300, 1000}
    assert {e.options.objective.value for e in LIBRARY.entries} == {"gpu_time", "makespan", "cost"}
    assert max(e.size.steps for e in LIBRARY.entries if e.kind == "full epoch") > 1500


def test_the_index_lists_every_instance_file():
    files = {p.name for p in SHIPPED.glob("*.json")} - {INDEX_NAME}
    assert files == {e.instance.file for e in LIBRARY.entries}


def test_the_index_is_what_its_generator_writes():
    assert LIBRARY.path.read_text() == generate_library().text()


@pytest.mark.parametrize("name", [e.name for e in LIBRARY.entries])
def test_entry_and_instance_agree(name):
    instance = LIBRARY.instance(name)  # raises where the digest differs
    entry = LIBRARY.entry(name)
    assert entry.size == Size.of(instance)
    if entry.options.num_stages is not None:
        assert entry.options.num_stages == sum(p.count for p in instance.gpu_pools)
    if entry.options.objective.value == "cost":
        assert all(p.price_per_hour is not None for p in instance.gpu_pools)


@lru_cache
def costs_of(table: Path, backbone: str, gpu: str):
    return fit_costs(read_cost_table(table), backbone, gpu)


@pytest.mark.parametrize("name", [e.name for e in LIBRARY.entries])
def test_figures_of_an_entry_were_found_with_the_costs_of_today(name):
    # where this fails, costs have changed: cappuccino bench --update finds new figures
    instance, entry = LIBRARY.instance(name), LIBRARY.entry(name)
    costs = {p.gpu: costs_of(instance.cost_table, instance.backbone, p.gpu) for p in instance.gpu_pools}
    assert entry.best_known is not None
    assert not entry.stale(cost_probes(instance, costs))


def test_size_counts_what_is_trained():
    # 2 steps of 2 samples, and one pass over 5 samples in batches of 2: 2 steps
    instance = make_instance(([1, 2, 3], 2, 2), ([1, 2, 3, 4, 5], 2), gpus={"x": 3, "y": 1})
    assert Size.of(instance) == Size(adapters=2, steps=4, samples=8, gpus={"x": 3, "y": 1})


def test_objective_and_bound_may_come_from_two_runs():
    better_bound = updated_entry(KNOWN, run(105.0, 95.0, seed=1)).best_known
    assert (better_bound.objective, better_bound.bound.value, better_bound.bound.seed) == (finding(100.0, 7), 95.0, 1)
    assert better_bound.gap == pytest.approx(0.05)
    better_plan = updated_entry(KNOWN, run(96.0, 80.0, seed=2)).best_known
    assert (better_plan.objective.value, better_plan.objective.seed, better_plan.bound) == (96.0, 2, finding(90.0, 8))
    assert better_plan.objective.cappuccino == "1.2.3"
    assert better_plan.gap == pytest.approx(6 / 96)


def test_an_entry_nothing_is_known_of_takes_the_run():
    entry = updated_entry(entry_of(), run(96.0, None))
    assert (entry.best_known.objective.value, entry.best_known.bound, entry.best_known.gap) == (96.0, None, None)
    assert entry.reference.value == 1000.0
    assert entry.costs == PROBES


def test_an_equal_value_keeps_the_run_that_found_it_first():
    assert updated_entry(KNOWN, run(100.0 * (1 - 1e-7), 90.0 * (1 + 1e-7))).best_known == KNOWN.best_known


def test_values_of_other_costs_are_replaced_not_compared():
    assert KNOWN.stale(OTHER_PROBES)
    assert not KNOWN.stale(PROBES)
    assert not entry_of().stale(OTHER_PROBES)
    # the run is worse, and below what the old costs' bound would allow: neither counts
    for value in (120.0, 80.0):
        entry = updated_entry(KNOWN, run(value, 70.0, probes=OTHER_PROBES))
        assert (entry.best_known.objective.value, entry.best_known.bound.value) == (value, 70.0)
        assert entry.costs == OTHER_PROBES


@pytest.mark.parametrize(
    ("entry", "value", "bound", "reference", "words"),
    [
        (KNOWN, 89.0, 80.0, 1000.0, ("best-known bound 90", "run's checked objective 89")),
        (KNOWN, 120.0, 101.0, 1000.0, ("run's bound 101", "best-known objective 100")),
        (KNOWN, 120.0, 80.0, 89.0, ("best-known bound 90", "objective of the reference 89")),
        (entry_of(), 120.0, 95.0, 94.0, ("run's bound 95", "objective of the reference 94")),
        (entry_of(), 120.0, 121.0, 1000.0, ("run's bound 121", "run's checked objective 120")),
    ],
)
def test_a_bound_above_a_checked_objective_is_a_contradiction(entry, value, bound, reference, words):
    with pytest.raises(ContradictionError, match='entry "e"') as caught:
        updated_entry(entry, run(value, bound, reference=reference))
    assert all(word in str(caught.value) for word in words)


def test_rounding_is_no_contradiction():
    require_no_contradiction(KNOWN, 90.0 * (1 - 1e-7), None)
    require_no_contradiction(KNOWN, 100.0, 100.0 * (1 + 1e-7))


def test_probes_tell_cost_models_apart():
    # forward 1, backward 2 and transfer 0.5 seconds per token, 4 s an optimizer step, at every depth: a slot of 64
    # tokens takes 224 + 4 s; 10 GiB and 2 per token of 30 GiB leave 10 tokens
    instance = make_instance(([1], 1))

    def probes(**changes):
        settings = {"usable": 30.0, "transfer": (0.0, 0.5), "optimizer_s": 4.0, **changes}
        return cost_probes(instance, {"x": make_costs(**settings)})

    found = probes()
    slots = (228.0, 3588.0, 28676.0) * 2
    assert found["x"] == tuple(CostProbe(num_stages=g, slots_s=slots, max_tokens=10) for g in (1, 2, 3, 4))
    known = KNOWN.model_copy(update={"costs": found})
    assert not known.stale(probes(transfer=(0.0, 0.5 * (1 + 1e-7))))
    for other in (
        {"forward": SmoothMaximum(0.0, 1.01, 0.0, 2.0)},
        {"forward": SmoothMaximum(0.0, 1.0, 1e-6, 2.0)},
        {"backward": SmoothMaximum(50.0, 2.0, 0.0, 2.0)},
        {"transfer": (1.0, 0.5)},
        {"optimizer_s": 4.1},
        {"usable": 50.0},
        {"stages": (1, 2)},
    ):
        assert known.stale(probes(**other)), other


def test_least_gpus_counts_those_that_hold_the_backbone_and_one_adapter():
    # 15 GiB usable: one stage holds 16 GiB of weights and never fits, two hold 8 and fit 3 tokens at 2 GiB each
    memory = {g: MemoryModel(16.0 / g, 1.0, 1.0) for g in (1, 2, 3)}
    costs = {"x": dataclasses.replace(make_costs(usable=15.0), memory=memory)}
    assert least_gpus(make_instance(([3], 1), ([9], 1)), costs) == 2
    assert least_gpus(make_instance(([4], 1)), costs) == 3
    assert least_gpus(make_instance(([4], 1), gpus=2), costs) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A library of one entry, away from the shipped one."""
    shutil.copy(SHIPPED / "tiny1-llama7b.json", tmp_path)
    (tmp_path / "lengths").mkdir()
    shutil.copy(SHIPPED / "lengths" / "public.json", tmp_path / "lengths")
    entry = LIBRARY.entry("tiny1-llama7b")
    bare = entry.model_copy(update={"costs": None, "best_known": None, "reference": None})
    Library(tmp_path, (bare,)).save()
    return tmp_path


def rewrite(folder: Path, change) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    change(index["entries"])
    (folder / INDEX_NAME).write_text(json.dumps(index))


def known_as_json(objective: float, bound: float, gap: float) -> dict:
    figures = {"cappuccino": "0.1.0", "wall_time_s": 1.0, "seed": 0}
    return {"objective": {"value": objective, **figures}, "bound": {"value": bound, **figures}, "gap": gap}


def costs_as_json() -> dict:
    return {"a100-40gb": [{"num_stages": 2, "slots_s": [0.5, 1.0, 8.0] * 2, "max_tokens": 5}]}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (lambda e: e[0].pop("kind"), "entries[0].kind", ("missing",)),
        (lambda e: e[0].update(colour="red"), "entries[0].colour", ("not a known field",)),
        (lambda e: e.append(e[0]), "entries[1].name", ("tiny1-llama7b", "twice")),
        (lambda e: e[0]["options"].update(deadline_s=-1), "entries[0].options.deadline_s", ("-1",)),
        (lambda e: e[0]["options"].update(objective="speed"), "entries[0].options.objective", ("speed",)),
        (lambda e: e[0].update(reference={"value": None}), "entries[0].reference", ("reason",)),
        (
            lambda e: e[0].update(best_known=known_as_json(1.0, 2.0, 0.0), costs=costs_as_json()),
            "entries[0].best_known",
            ("bound (2)", "above", "(1)"),
        ),
        (
            lambda e: e[0].update(best_known=known_as_json(2.0, 1.0, 0.1), costs=costs_as_json()),
            "entries[0].best_known",
            ("gap", "0.5"),
        ),
        (lambda e: e[0].update(best_known=known_as_json(2.0, 1.0, 0.5)), "entries[0]", ("costs",)),
    ],
)
def test_a_malformed_index_is_one_clear_error(folder, change, field, words):
    rewrite(folder, change)
    with pytest.raises(InputError) as caught:
        Library.load(folder)
    assert caught.value.source.endswith(INDEX_NAME)
    assert caught.value.field == field
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_unknown_entry_names_those_there_are(folder):
    with pytest.raises(InputError, match='no entry "nothing"; name some of: tiny1-llama7b'):
        Library.load(folder).entry("nothing")


def test_a_changed_instance_file_is_not_the_entrys(folder):
    path = folder / "tiny1-llama7b.json"
    path.write_text(path.read_text().replace('"num_steps": 2', '"num_steps": 3'))
    with pytest.raises(InputError, match=r"entries\[0\]\.instance\.sha256.*tiny1-llama7b\.json"):
        Library.load(folder).instance("tiny1-llama7b")


def test_the_index_file_round_trips(folder):
    library = Library.load(folder)
    entry = updated_entry(library.entry("tiny1-llama7b"), run(2.0, 1.0, seed=3))
    library.with_entry(entry).save()
    assert Library.load(folder).entry("tiny1-llama7b") == entry


def test_generating_again_keeps_what_is_known_of_unchanged_entries(folder, monkeypatch):
    library = Library.load(folder)
    library.with_entry(updated_entry(library.entry("tiny1-llama7b"), run(2.0, 1.0))).save()
    monkeypatch.setattr(generate_index, "special_entries", lambda: iter(()))

    def generated(kinds):
        monkeypatch.setattr(generate_index, "KINDS", kinds)
        return generate_library(folder).entry("tiny1-llama7b")

    longer = generated({"tiny": {"tiny1-llama7b": 99}})
    assert (longer.options.time_limit_s, longer.best_known.objective.value) == (99, 2.0)
    path = folder / "tiny1-llama7b.json"
    path.write_text(path.read_text().replace('"num_steps": 2', '"num_steps": 3'))
    other = generated({"tiny": {"tiny1-llama7b": 99}})
    assert (other.size.steps, other.best_known, other.costs) == (3, None, None)
