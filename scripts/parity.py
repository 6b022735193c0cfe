"""How near wanbox comes to diffusers' own pipelines: same random weights, texts, pictures and noise, in float32.

Every row takes the sampling numbers of a profile, four steps, and a miniature of its layout. Prints the table and
puts it into docs/parity.md. Needs no download and about a minute.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
import transformers.utils.logging

from parity_peers import ROOT, Case, Difference, open_peers
from wan_pipelines.load import silence_progress_bars
from wan_pipelines.plan import RenderPlan

DOCUMENT = ROOT / "docs" / "parity.md"
BEGIN, END = "<!-- table of scripts/parity.py -->", "<!-- end of table -->"
#: largest difference that is let pass: of the first prediction, and of the latents after all steps
FORWARD_LIMIT, LATENTS_LIMIT = 1e-5, 1e-4

CASES = (
    Case("wan2.2-i2v-a14b", ("first_frame",)),
    # experts with scales of their own, so that a mix-up shows
    Case("wan2.2-i2v-a14b", ("first_frame", "last_frame"), {"guidance_low": 2.5}),
    Case("wan2.2-i2v-a14b:fast", ("first_frame",)),
    Case("wan2.2-ti2v-5b", ("first_frame",)),
    Case("wan2.2-ti2v-5b"),
    Case("wan2.1-i2v-14b-720p", ("first_frame",)),
    Case("wan2.1-flf2v-14b-720p", ("first_frame", "last_frame")),
    Case("wan2.2-t2v-a14b"),
    Case("wan2.1-t2v-1.3b"),
    Case("wan2.1-vace-14b", ("first_frame",)),
    Case("wan2.1-vace-14b", ("first_frame", "last_frame")),
    Case("wan2.1-vace-14b", ("last_frame",)),
    Case("wan2.1-vace-14b", ("first_clip",)),
    Case("wan2.1-vace-14b"),
)


def row(case: Case, plan: RenderPlan, found: Difference) -> str:
    """One line of the table."""
    high, low = f"{plan.guidance_high:g}", f"{plan.guidance_low:g}"
    guidance = high if plan.boundary is None else f"{high} / {low}"
    forwards = str(found.forwards[0]) if plan.boundary is None else " + ".join(map(str, found.forwards))
    cells = [
        case.model,
        ", ".join(case.roles) or "text alone",
        f"{plan.sampler}, shift {plan.shift:g}",
        guidance,
        forwards,
        f"{found.forward:.1e}",
        f"{found.latents:.1e}",
        f"{found.effect:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def table(work: Path) -> Iterator[str]:
    """The lines of the table, each as soon as it is known. Raises SystemExit when a limit is broken."""
    yield "| model | given | sampler | guidance high / low | forwards | one forward | latents | another input |"
    yield "|---|---|---|---|---|---|---|---|"
    for case in CASES:
        peers = open_peers(case, work)
        found = peers.compare()
        yield row(case, peers.plan, found)
        if not (found.forward <= FORWARD_LIMIT and found.latents <= LATENTS_LIMIT):
            raise SystemExit(f"{case.name}: beyond {FORWARD_LIMIT} or {LATENTS_LIMIT}")


def main() -> None:
    """Print the table and put it into the document."""
    silence_progress_bars()
    transformers.utils.logging.set_verbosity_error()  # it says that CLIP's preprocessor does without torchvision
    lines = []
    with tempfile.TemporaryDirectory() as work:
        for line in table(Path(work)):
            print(line, flush=True)
            lines.append(line)
    versions = f"diffusers {diffusers.__version__}, torch {torch.__version__.partition('+')[0]}, float32 on a CPU"
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text("\n".join([f"{before}{BEGIN}", *lines, "", f"{versions}.", f"{END}{after}"]), encoding="utf-8")


if __name__ == "__main__":
    main()
