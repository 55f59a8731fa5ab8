"""Tests of the shortlists; ``shortlist.tiny`` makes fixtures for any test."""
