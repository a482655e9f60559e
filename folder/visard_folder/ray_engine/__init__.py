"""The engine on a Ray cluster: `cluster` (joined or started), `actor` (one core of it), `driver` (hands out work)."""

from visard_folder.ray_engine.driver import RayEngine

__all__ = ["RayEngine"]
