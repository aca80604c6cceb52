"""The index of the library: `python -m cappuccino.instances.generate_index` rewrites `index.json`.

What is known of an entry is kept while its instance and its options stay what they were; `cappuccino bench --update`
adds to it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cappuccino.instance import Instance
from cappuccino.library.index import INDEX_NAME, SHIPPED, Library
from cappuccino.library.records import Entry, EntryFile, EntryOptions, Size

KINDS: Mapping[str, Mapping[str, float]] = {
    "tiny": {"tiny-cpu": 10, "tiny1-llama7b": 5, "tiny2-qwen7b": 10, "tiny3-qwen32b": 10},
    "seed": {"seed4-qwen32b": 60, "seed4-llama7b": 60, "seed4-llama70b": 60},
    "mixed": {
        "mixed12-qwen32b": 120,
        "mixed12-llama7b": 120,
        "mixed12-llama13b": 120,
        "mixed12-qwen14b": 120,
        "mixed16-llama70b": 120,
    },
    "many adapters": {"many32-qwen7b": 120, "many48-llama70b": 120},
    "tight memory": {"tight4-qwen32b": 60, "tight6-llama70b": 60, "tight8-qwen32b": 60},
    "long tails": {"tails6-qwen32b": 60, "uneven8-llama8b": 120, "uneven6-llama70b": 60},
    "padded layout": {"padded6-llama8b": 60, "padded12-qwen32b": 120},
    "full epoch": {"full12-qwen32b": 120, "full4-llama7b": 60},
    "100 adapters": {"scale100-qwen32b": 120, "scale100-llama8b": 120},
    "300 adapters": {"scale300-llama70b": 300},
    "1000 adapters": {"scale1000-qwen32b": 600},
}
"""Entries planned for the least GPU time, named like their instance files, with time limits in seconds, by kind."""


def special_entries() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield name, kind, instance and options of the entries that are planned for more than the least GPU time."""
    for name, stages in (("deep4-qwen32b", 4), ("deep6-qwen32b", 6), ("deep8-llama70b", 8)):
        yield name, "deep pipeline", name, {"num_stages": stages, "time_limit_s": 120}
    # little above the makespans that are known to be possible, and once twice that
    for name, deadline in (
        ("mixed12-qwen32b", 80),
        ("mixed12-qwen32b", 160),
        ("mixed16-llama70b", 150),
        ("scale100-qwen32b", 250),
    ):
        yield f"{name}-within-{deadline}s", "deadline", name, {"deadline_s": deadline, "time_limit_s": 120}
    yield "mixed12-qwen32b-makespan", "makespan", "mixed12-qwen32b", {"objective": "makespan", "time_limit_s": 120}
    yield "many32-qwen7b-makespan", "makespan", "many32-qwen7b", {"objective": "makespan", "time_limit_s": 120}
    cost = {"objective": "cost", "time_limit_s": 60}
    yield "pools8-qwen32b-cost", "mixed pools", "pools8-qwen32b", cost
    yield "pools8-qwen32b-cost-within-40s", "mixed pools", "pools8-qwen32b", {**cost, "deadline_s": 40}
    yield "pools24-qwen32b", "mixed pools", "pools24-qwen32b", {"time_limit_s": 120}
    yield "pools12-llama8b-cost", "mixed pools", "pools12-llama8b", cost


def generate_library(folder: Path = SHIPPED) -> Library:
    """Return the library of a folder of instance files, with what its present index knows.

    Raises
    ------
    InputError
        When an instance file or the present index is malformed.
    """
    known = {e.name: e for e in Library.load(folder).entries} if (folder / INDEX_NAME).exists() else {}
    plain = [(name, kind, name, {"time_limit_s": t}) for kind, limits in KINDS.items() for name, t in limits.items()]
    entries = []
    for name, kind, stem, options in (*plain, *special_entries()):
        instance = Instance.load(folder / f"{stem}.json")
        entry = Entry(
            name=name,
            kind=kind,
            instance=EntryFile(file=f"{stem}.json", sha256=instance.digest),
            size=Size.of(instance),
            options=EntryOptions(**options),
        )
        old = known.get(name)
        if old is not None and old.instance == entry.instance and _same_problem(old.options, entry.options):
            found = {"costs": old.costs, "best_known": old.best_known, "reference": old.reference}
            entry = entry.model_copy(update=found)
        entries.append(entry)
    return Library(folder, tuple(entries))


def _same_problem(old: EntryOptions, new: EntryOptions) -> bool:
    """Return whether options ask for the same; the time limit changes how long, not what."""
    return old.model_copy(update={"time_limit_s": new.time_limit_s}) == new


def main() -> None:
    """Rewrite the index."""
    generate_library().save()


if __name__ == "__main__":
    main()
