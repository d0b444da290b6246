"""Runnable reinterpretations with real inputs, one module each; nothing heavy is imported before its use."""
