"""The Hydra configuration tree; a package so that it travels with the app."""
