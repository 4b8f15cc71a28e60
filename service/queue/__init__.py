"""The inference queue and its threads. No HTTP here."""
