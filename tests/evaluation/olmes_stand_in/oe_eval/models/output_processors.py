"""Where OLMES looks up how to post-process what a model wrote."""

MODEL_OUTPUT_PROCESSORS = {}
