"""Whole native guests take seconds each: their tests run on one event loop unless they ask for both."""

from tests.native.guests import native_guests as native_guests  # noqa: PLC0414 - a fixture
