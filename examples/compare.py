"""Show generated sets side by side: mask | one column per set | the real image.

Rows are evenly spaced over the masks that all sets share, so they are not hand-picked.
Example: python examples/compare.py --dataset data/camvid128 --generated new_dpm new_ddim --output compare.png
"""

import argparse
from pathlib import Path

from PIL import Image

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.images import image_grid


def column_title(row: dict) -> str:
    """Return the sampling settings of a set from a row of its metadata."""
    scheduler = row["scheduler"].removesuffix("Scheduler")
    return f"{scheduler}, {row['num_inference_steps']} steps, guidance {row['guidance_scale']:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="prepared folder with the real images")
    parser.add_argument("--split", default="val", help="split of the masks (default %(default)s)")
    parser.add_argument("--generated", required=True, nargs="+", type=Path, help="folders that generate wrote")
    parser.add_argument("--rows", type=int, default=5, help="masks (default %(default)s)")
    parser.add_argument("--cell", type=int, default=160, help="pixels per image (default %(default)s)")
    parser.add_argument("--output", required=True, type=Path, help="PNG or JPEG to write")
    args = parser.parse_args()
    pairs = load_pairs(args.dataset, args.split)
    sets = [{row["stem"]: row for row in read_metadata(folder) if row["index"] == 0} for folder in args.generated]
    shared = [stem for stem in pairs.stems if all(stem in rows for rows in sets)]
    if not shared:
        raise SystemExit(f"error: no mask of {args.dataset} ({args.split}) was generated in all of {args.generated}")
    stems = [shared[place * len(shared) // args.rows] for place in range(min(args.rows, len(shared)))]
    grid = []
    for stem in stems:
        first = sets[0][stem]
        cells = [open_image(args.generated[0] / first["mask_file_name"])]
        cells += [
            open_image(folder / rows[stem]["image_file_name"], "image")
            for folder, rows in zip(args.generated, sets, strict=True)
        ]
        image = pairs[pairs.stems.index(stem)]["image"]
        grid.append([*cells, Image.fromarray(image.permute(1, 2, 0).numpy())])
    titles = ["mask", *(column_title(rows[stems[0]]) for rows in sets), "real image"]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    image_grid(grid, titles, cell_size=args.cell).save(args.output)
    print(f"written: {args.output} ({len(stems)} of {len(shared)} masks)")


if __name__ == "__main__":
    main()
