"""The proof of a staged slide: its structure, what other readers see, and its pixels against the source's.

Only imported when pixels are being read (``job``): with the readers of other people it takes a seventh of the CPU that
a conversion needs before its first pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mimic import copyproof, privacy, reread, rules, stored, streams, verify
from mimic.model import Check, Plan, Progress, Sample
from mimic.settings import Settings
from mimic.sources import TileReader

Watch = Callable[[Progress], None]


def encoded(
    staged: Path,
    plan: Plan,
    samples: tuple[Sample, ...],
    sums: streams.Sums | None,
    *,
    scan: copyproof.Scan,
    settings: Settings,
    watch: Watch,
) -> tuple[Check, ...]:
    """Checks of a slide whose tiles mimic has encoded, all of them passed. ``samples`` were kept during the pass.

    Raises VerificationFailed.
    """

    def read_again() -> Check:
        with scan() as reader:
            return reread.sample(reader, samples, threads=plan.threads)

    judged = partial(verify.pixels, staged, samples, quality=plan.quality, profile=plan.profile, threads=plan.threads)
    with ThreadPoolExecutor(3, thread_name_prefix="mimic-again") as beside:  # each alone leaves a core idle at times
        again, caught = beside.submit(read_again), beside.submit(judged)
        seen = beside.submit(_seen, staged, plan)
        structure = _structure(staged, plan, sums, watch=watch)
        checks = (*structure, *seen.result(), *caught.result(), again.result())
    if plan.verify == "full":
        with scan() as reader:
            checks += reread.everything(staged, plan, reader, watch=watch)
    verify.raise_if_failed(checks, plan.output)  # else our own mistake would be called the source's damage
    checks += stored.check(staged, plan, threads=plan.threads, settings=settings)
    verify.raise_if_failed(checks, plan.output)
    return checks


def copied(
    staged: Path,
    plan: Plan,
    tiles: TileReader,
    sums: streams.Sums | None,
    *,
    witnessed: tuple[Check, ...],
    scan: copyproof.Scan,
    watch: Watch,
) -> tuple[Check, ...]:
    """Checks of a slide of copied tiles against the source's, all of them passed, with those ``witnessed`` while they
    were copied.

    Raises VerificationFailed, and BadInput for a tile that does not decode: it is the source's damage.
    """
    there = copyproof.chosen(staged, plan, tiles)
    compared = partial(copyproof.decoded, staged, plan, tiles, there)
    with ThreadPoolExecutor(3, thread_name_prefix="mimic-again") as beside:
        seen, read = beside.submit(_seen, staged, plan), beside.submit(copyproof.as_read, staged, plan, scan, there)
        sample = beside.submit(compared) if plan.verify == "sample" else None
        structure = _structure(staged, plan, sums, watch=watch)
        same = copyproof.identity(staged, plan, tiles, watch=watch)
        pixels = sample.result() if sample is not None else compared()  # all of them: here an interrupt is heard
        checks: tuple[Check, ...] = (same, pixels, read.result())
    if not verify.failed(checks):
        copyproof.blame(structure, plan)
    checks = (*structure, *seen.result(), *checks, *witnessed)
    verify.raise_if_failed(checks, plan.output)
    return checks


def _structure(staged: Path, plan: Plan, sums: streams.Sums | None, *, watch: Watch) -> tuple[Check, ...]:
    """What the file itself shows. ``sums`` are not believed with ``--verify full``."""
    known = None if plan.verify == "full" else sums
    return rules.structure(staged, threads=plan.threads, progress=watch, sums=known, decoded=plan.copied_levels)


def _seen(staged: Path, plan: Plan) -> tuple[Check, ...]:
    """What other readers see in it, and a search for what it must not tell."""
    found = verify.readers(staged, plan)
    return (*found, *(privacy.search(staged, plan) if plan.deidentify else ()))
