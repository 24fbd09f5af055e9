"""The search for hyper-parameters: `python tune/search.py`."""
