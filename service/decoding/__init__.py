"""Decoding of uploads, in processes that can be killed. No HTTP here."""
