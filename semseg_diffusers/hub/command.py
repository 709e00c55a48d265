"""Publish a model or a data set on the Hugging Face Hub, with its card; the same command completes or renews it.

The token comes from HF_TOKEN or `hf auth login`, never from an option.
"""

import argparse
import sys

from semseg_diffusers.hub.push import push_dataset, push_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers push`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="RUN", help="run folder, or a folder that save_pretrained wrote")
    what.add_argument("--dataset", metavar="DIR", help="folder that prepare, toy or generate wrote")
    parser.add_argument("--repo_id", required=True, metavar="USER/NAME", help="repository on the Hub; made if need be")
    parser.add_argument("--private", action="store_true", help="make it private (default: as the Hub has it, public)")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made if need be (default: main)")
    parser.add_argument("--commit_message", help="title of the commit")
    parser.add_argument(
        "--results", nargs="+", metavar="FILE", help="results.json that `evaluate` wrote of this model, for its card"
    )


def run(args: argparse.Namespace) -> None:
    """Push, and say where it is."""
    if args.dataset and args.results:
        raise ValueError("--results belongs to a model's card: give it with --model.")
    options = {"revision": args.revision, "commit_message": args.commit_message, "private": args.private or None}
    if args.model:
        url = push_model(args.model, args.repo_id, results=args.results, **options)
    else:
        url = push_dataset(args.dataset, args.repo_id, **options)
    sys.stdout.write(f"pushed: {url}\n")
