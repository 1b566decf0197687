"""Hot paths of the library against the packages that a user would otherwise pick, measured side by side in one process."""
