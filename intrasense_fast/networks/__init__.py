"""The compared networks, one file each; the contract they share is in `contract.py`."""
