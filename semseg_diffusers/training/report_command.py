"""Write the page of a training run: run.html in its folder, whether the run goes on, has ended, or was killed.

A run writes its page itself at each preview and checkpoint; this makes it anew in between and afterwards. Only the
run folder is read: neither the data set nor the network is needed.
"""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers report`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run: the --output_dir of `train`")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the HTML file (default: run.html in the folder)")


def run(args: argparse.Namespace) -> int:
    """Write the page and print where it lies."""
    from semseg_diffusers.training.page.page import write_run_page

    sys.stdout.write(f"{write_run_page(args.run, args.output)}\n")
    return 0
