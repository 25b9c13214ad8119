"""Dashboards, recording rules and alerts, and the generator that writes them."""
