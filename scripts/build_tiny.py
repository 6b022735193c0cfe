"""Write a tiny random checkpoint in diffusers layout, for trying things out: `build_tiny.py FOLDER --experts 2`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from wan_pipelines.load import silence_progress_bars
from wan_pipelines.tiny import Layout, TinySpec, build_tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="must not exist yet")
    parser.add_argument("--family", choices=get_args(Layout), default="concat")
    parser.add_argument("--pictures", type=int, choices=[0, 1, 2], default=0, help="that an image encoder sees")
    parser.add_argument("--experts", type=int, choices=[1, 2], default=1, help="2 shares the noise range at 0.9")
    parser.add_argument("--vae", choices=["2.1", "2.2"], default="2.2", help="layout of the autoencoder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder} exists")
    spec = TinySpec(
        conditioning=args.family,
        boundary=0.9 if args.experts == 2 else None,
        vae22=args.vae == "2.2",
        clip_pictures=args.pictures,
        seed=args.seed,
    )
    silence_progress_bars()
    build_tiny(spec, args.folder)
    size = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    print(f"{args.folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
