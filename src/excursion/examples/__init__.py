"""Runnable reinterpretations with real inputs, one module each. Nothing heavy is imported before it is needed."""
