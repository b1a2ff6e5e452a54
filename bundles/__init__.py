"""The MONAI Bundles of monai-mil; a wheel has them as the package ``monai_mil_bundles``."""
