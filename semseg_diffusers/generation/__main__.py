"""`accelerate launch -m semseg_diffusers.generation ...`: generation on several processes."""

from semseg_diffusers.generation.command import main


if __name__ == "__main__":
    main()
