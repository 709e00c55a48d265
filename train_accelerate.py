"""Train a mask-guided diffusion network: `accelerate launch train_accelerate.py --dataset DIR --output_dir RUN`.

All of it lives in `semseg_diffusers.training`, so that an installed wheel can train too.
"""

from semseg_diffusers.training.loop import main


if __name__ == "__main__":
    main()
