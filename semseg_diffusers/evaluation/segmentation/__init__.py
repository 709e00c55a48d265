"""Segmentation networks that read class ids back from images: trained here, or brought from elsewhere."""
