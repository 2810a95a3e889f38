"""Tests of b2s."""
