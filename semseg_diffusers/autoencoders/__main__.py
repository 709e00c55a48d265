"""`accelerate launch -m semseg_diffusers.autoencoders ...`: an autoencoder trained on several processes."""

from semseg_diffusers.autoencoders.autoencoder import run
from semseg_diffusers.autoencoders.settings import AutoencoderSettings
from semseg_diffusers.utils.distributed import process_main


if __name__ == "__main__":
    process_main(AutoencoderSettings, run, "python -m semseg_diffusers.autoencoders")
