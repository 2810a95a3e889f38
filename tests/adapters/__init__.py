"""Adapters against the outside things they adapt."""
