"""A trained network as one file for other programs: ONNX, PyTorch 2 or TorchScript.

`write.export_checkpoint` is the way in; nothing here is imported before it is asked for.
"""
