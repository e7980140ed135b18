"""Thin adapters over vetted cryptographic libraries. No primitive is designed here."""
