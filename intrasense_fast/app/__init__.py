"""The page to try a checkpoint on, `intrasense-fast app`: what is computed of a picture, how it is
shown, and the server."""
