"""`accelerate launch -m semseg_diffusers.training ...`: training from an installed wheel."""

from semseg_diffusers.training.loop import main


if __name__ == "__main__":
    main()
