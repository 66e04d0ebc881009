from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Literal

from spatialdata import SpatialData

from pixel2gene import __version__
from pixel2gene.core.device import choose_device
from pixel2gene.core.embedding import choose_overlap, choose_scales, embedding_channels
from pixel2gene.core.encoders import shared_encoder
from pixel2gene.core.stain import METHODS
from pixel2gene.spatial.elements import compute, get_record, image_element, require_new, write_elements
from pixel2gene.spatial.grid import SUPERPIXEL_UM, superpixel_grid
from pixel2gene.spatial.image import open_image
from pixel2gene.spatial.mask import read_mask
from pixel2gene.spatial.pixel_size import pixel_size
from pixel2gene.spatial.provenance import digests, made_by
from pixel2gene.spatial.raster import TILE, LocalTile, fingerprint, lazy_embedding, lazy_tiles, slide_stain
from pixel2gene.spatial.resume import finished_tiles
from pixel2gene.spatial.store import alone


@alone
def embed(
    sdata: SpatialData,
    image_key: str,
    *,
    encoder: str | os.PathLike[str] = "lite0",
    overlap: float | None = None,
    stain: Literal["macenko", "vahadane", "reinhard"] | None = None,
    scales: Sequence[int] = (1,),
    tissue_key: str | None = None,
    mpp: float | None = None,
    force: bool = False,
    device: str | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Describe the morphology of every superpixel of tissue by a vector.

    The image is resampled to the encoder's resolution and encoded in overlapping tiles, so that their borders do not
    show. Colour and stain statistics and the mean over the surrounding tissue (72 and 200 µm wide) are joined
    to the encoder's channels, and wider fields if asked for.

    Parameters
    ----------
    sdata
        Holds the image.
    image_key
        8-bit RGB or RGBA image.
    encoder
        ``"lite0"``: EfficientNet-Lite0, which ships with its weights; another of `pixel2gene.encoders`; or a folder of
        weights: ``config.json`` and ``model.safetensors`` of any vision transformer of timm or transformers, or the
        two DINO checkpoints of HIPT, ``vit256_small_dino.pth`` and ``vit4k_xs_dino.pth``.
    overlap
        For encoders that see the image in windows: the share of a window that the next one covers too, 0.5 by default
        (HIPT: 0). What windows say of a superpixel is averaged, the middle of a window weighted more than its border.
    stain
        ``"macenko"`` or ``"vahadane"``: haematoxylin and eosin, as found in the tissue, are brought to the colour and
        strength of a standard stain first (Macenko et al., 2009; Vahadane et al., 2016). ``"reinhard"``: mean and
        spread of the colours of the tissue are (Reinhard et al., 2001). Embed all slides of a model alike.
    scales
        ``(1, 2, 4)``: join what the encoder makes of fields twice and four times as wide, which it sees in pixels twice
        and four times as large, interpolated at each superpixel; ``(1,)`` by default.
    tissue_key
        Labels (other than 0) or shapes to describe: the result of `pixel2gene.tl.tissue` by default
        (``f"{image_key}_tissue"``), or any of your own.
    mpp, force
        As in `pixel2gene.tl.tissue`; what was settled there is taken over.
    device
        ``"cpu"``, ``"cuda"`` ...; the best there is by default.
    key_added
        Name of the result, ``f"{image_key}_embedding"`` by default.
    overwrite
        Replace a result of that name.
    progress
        Show a progress bar.

    Returns
    -------
    None. Adds ``images[key_added]``: (c, y, x) float16 on the superpixel grid of 8 µm, zero outside the tissue.
    Encoder, hash of its weights, pixel size and tissue are recorded in ``sdata.attrs["pixel2gene"][key_added]``.

    Of a SpatialData in a store, tiles that are finished are kept in its folder ``.pixel2gene`` until all are: called
    again after it was interrupted, with the same arguments, `embed` goes on from there.

    Raises
    ------
    KeyError
        If there is no such image or tissue.
    ValueError
        If the image is no 8-bit RGB, its pixel size is unknown or implausible, the encoder is unknown or its folder
        has no weights that can be read, the overlap is no share or there are no windows, the scales do not grow from
        1, the stain is not that of haematoxylin and eosin, the tissue lies elsewhere, or the result exists.
    ImportError
        If the encoder needs a package that is not installed.
    OSError
        If the weights of the encoder cannot be had: they are gated, or there is no network.

    Examples
    --------
    >>> sdata = p2g.datasets.simulate(size=(512, 512), n_genes=5)
    >>> p2g.tl.tissue(sdata, "he", progress=False)
    >>> p2g.tl.embed(sdata, "he", progress=False)
    >>> sdata["he_embedding"].sizes["c"]
    549
    """
    slide = open_image(sdata, image_key)
    arguments = {
        "image_key": image_key,
        "encoder": encoder,
        "overlap": overlap,
        "stain": stain,
        "scales": scales,
        "tissue_key": tissue_key,
        "mpp": mpp,
        "force": force,
    }
    key_added = key_added or f"{image_key}_embedding"
    require_new(sdata, {key_added: "images"}, overwrite)
    if tissue_key is None:
        tissue_key = f"{image_key}_tissue"
        settled = get_record(sdata, tissue_key, "tissue")
        if mpp is None:
            mpp, force = settled["mpp"], settled["force"]
    mpp = pixel_size(sdata, image_key, mpp=mpp, force=force)
    grid = superpixel_grid(sdata, image_key, mpp)
    mask = read_mask(sdata, tissue_key, image_key, grid)
    if not isinstance(encoder, str | os.PathLike):
        raise ValueError(f"encoder={encoder!r} given; a name among pixel2gene.encoders(), or a folder, is expected.")
    chosen_device = choose_device(device)
    load = partial(shared_encoder, os.fspath(encoder), chosen_device)
    chosen = load()
    share, fields = choose_overlap(chosen, overlap), choose_scales(scales)
    if stain is not None and stain not in METHODS:
        raise ValueError(f"stain={stain!r}; one of {list(METHODS)}, or None, expected.")
    own = None if stain is None else slide_stain(slide, mask, mpp, stain)
    image = fingerprint(slide)
    record = {
        "verb": "embed",
        "version": __version__,
        "image_key": image_key,
        "tissue_key": tissue_key,
        "mpp": mpp,
        "superpixel_um": SUPERPIXEL_UM,
        "fingerprint": image,
        "encoder": {
            "name": chosen.name,
            "channels": embedding_channels(chosen, fields),
            "mpp": chosen.mpp,
            "superpixel_um": SUPERPIXEL_UM,
            "licence": chosen.licence,
            "weights_sha256": chosen.weights_sha256,
            "overlap": None if chosen.window is None else share,
            "stain": stain,
            "scales": None if fields == (1,) else list(fields),
        },
    }
    finished = finished_tiles(sdata, key_added, record, mask)
    tile = LocalTile(slide, mpp, load, share, own, fields, finished)
    if finished is not None:
        compute(lazy_tiles(tile, mask), "embed", progress)
    values = lazy_embedding(tile, mask)
    channels = [f"{chosen.name}_{i}" for i in range(values.shape[0])]
    # Models read all channels of a superpixel at once, so that they stay together in a chunk.
    element = image_element(values, grid, channels, chunks=(len(channels), TILE, TILE))
    if os.path.isdir(encoder):
        arguments["encoder"] = os.path.abspath(encoder)
    inputs = digests(sdata, image_key, [tissue_key], image=image)
    record |= made_by(arguments | {"key_added": key_added}, inputs, chosen_device)
    write_elements(
        sdata, {key_added: element}, record, progress=progress, label="embed" if finished is None else "write"
    )
