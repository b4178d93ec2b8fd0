"""What every operator shares: argument checks, layouts, precision, registration, launching."""

if not __name__.startswith("intrasense_fast."):
    raise ImportError(
        f"imported as {__name__!r}: this folder is intrasense_fast.kernels "
        "(a second name would register every operator twice)"
    )
