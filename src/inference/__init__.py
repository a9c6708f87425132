"""An ONNX file at work: session, classification of many images, predictions, result files."""
