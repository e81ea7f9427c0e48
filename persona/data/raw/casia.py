"""CASIA-WebFace (Yi et al. 2014): 494,414 photos of 10,575 identities."""

from __future__ import annotations

from persona.data.raw.base import IdentityFolders


class CasiaWebFace(IdentityFolders):
    """CASIA-WebFace's layout of one folder per identity: `0000045/001.jpg`."""

    name = "casia-webface"
    folder = "CASIA-WebFace"
    layout = "<identity>/<photo>.jpg, for example 0000045/001.jpg"
    obtain = "ask its authors (CASIA, Center for Biometrics and Security Research) for access"
