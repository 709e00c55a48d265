"""`accelerate launch -m semseg_diffusers.evaluation ...`: evaluation on several processes."""

from semseg_diffusers.evaluation.command import main


if __name__ == "__main__":
    main()
