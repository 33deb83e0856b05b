"""Tests on a simulated asynchronous device."""
