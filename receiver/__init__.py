"""Webhook receiver and callback router for AI video tasks."""

__version__ = "0.1.0"
