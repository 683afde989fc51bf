"""The cut of the TPU kernels' work into blocks, and its cost in bytes moved and in VMEM."""

from typing import NamedTuple

LANES = 128
SUBLANES = 8


class Plan(NamedTuple):
    """A sweep: M rows in blocks of `rows`, each core's share of the V columns in `tiles` tiles.

    rows, row_tile, blocks: rows that stay in VMEM, rows of a tile of logits, blocks of rows.
    vocab_tile, tiles, cores: columns of a tile of logits, tiles that a core visits, cores that share the vocabulary.
    width, vocabulary: D and V.
    """

    rows: int
    row_tile: int
    blocks: int
    vocab_tile: int
    tiles: int
    cores: int
    width: int
    vocabulary: int

    @property
    def padded_rows(self) -> int:
        """Rows that the blocks hold."""
        return self.rows * self.blocks

    @property
    def padded_vocabulary(self) -> int:
        """Columns that the tiles hold."""
        return self.vocab_tile * self.tiles * self.cores

    @property
    def last_tile(self) -> int:
        """Index of the last tile that holds a column; a core may visit one more, which holds none."""
        return -(-self.vocabulary // self.vocab_tile) - 1


def plan(shape: tuple[int, int, int], sizes: tuple[int, int, int], cores: int) -> Plan:
    """Cut M rows and V columns of `shape` (M, D, V) into blocks and tiles.

    These are at most `sizes` (rows, row tile, vocabulary tile).

    Blocks of rows are made equal, and a core without a tile is left out.

    Example:
      >>> cut = plan((5000, 64, 1000), (4096, 512, 512), 1)
      >>> (cut.blocks, cut.rows), (cut.tiles, cut.padded_vocabulary)
      ((2, 2560), (2, 1024))
    """
    rows, width, vocabulary = shape
    most_rows, row_tile, vocab_tile = sizes
    row_tile = min(row_tile, _up(rows, LANES))
    vocab_tile = min(vocab_tile, _up(vocabulary, LANES))
    blocks = -(-rows // most_rows)
    tiles = -(-vocabulary // vocab_tile)
    cores = min(cores, tiles)
    block_rows = _up(-(-rows // blocks), row_tile)
    return Plan(block_rows, row_tile, blocks, vocab_tile, -(-tiles // cores), cores, width, vocabulary)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class Traffic(NamedTuple):
    """Bytes that a kernel moves between HBM and VMEM, by kind; every row counts as valid.

    rows: arguments and results per row.
    hidden: hidden states.
    table: the output table.
    d_hidden: gradient of the hidden states, float32.
    running: gradient of the table on its way, float32: fetched and put back.
    d_table: gradient of the table as the caller gets it, where that is not the running one.
    bias: the bias and its gradient.
    """

    rows: int
    hidden: int
    table: int
    d_hidden: int = 0
    running: int = 0
    d_table: int = 0
    bias: int = 0

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self)


def forward_traffic(cut: Plan, itemsize: int, has_bias: bool) -> Traffic:
    """Return the bytes of the forward kernel: the table passes by once per block of rows."""
    return Traffic(
        rows=cut.cores * (1 + 4) * 4 * cut.padded_rows,
        hidden=cut.cores * cut.padded_rows * cut.width * itemsize,
        table=cut.blocks * cut.vocabulary * cut.width * itemsize,
        bias=cut.blocks * cut.padded_vocabulary * 4 if has_bias else 0,
    )


def backward_traffic(cut: Plan, itemsize: int, narrow: bool, facts: int, has_bias: bool) -> Traffic:
    """Return the bytes of the backward kernel.

    The running gradient is put back after each block of rows but the last and fetched before each but the first; the
    last one writes the result, which is the running gradient itself where it is not `narrow`er than float32.

    Args:
      cut: the plan.
      itemsize: bytes of an element of the hidden states and of the table.
      narrow: whether the gradient of the table is of that size, and not float32.
      facts: float32 numbers known per row.
      has_bias: whether there is a bias.
    """
    running = cut.padded_vocabulary * cut.width * 4
    return Traffic(
        rows=cut.cores * (1 + facts) * 4 * cut.padded_rows,
        hidden=cut.cores * cut.padded_rows * cut.width * itemsize,
        table=cut.blocks * cut.vocabulary * cut.width * itemsize,
        d_hidden=cut.cores * cut.padded_rows * cut.width * 4,
        running=running * (2 * (cut.blocks - 1) + (not narrow)),
        d_table=cut.vocabulary * cut.width * itemsize if narrow else 0,
        bias=2 * cut.blocks * cut.padded_vocabulary * 4 if has_bias else 0,
    )


def forward_vmem(cut: Plan, itemsize: int) -> int:
    """Return an upper estimate of the forward kernel's VMEM, bytes: its blocks and six tiles of logits."""
    per_row = cut.width * itemsize + (4 + 2 + 2) * SUBLANES * 4
    table = cut.vocab_tile * cut.width * (3 * itemsize + _parts(itemsize, 14))
    return cut.rows * per_row + table + _tiles(cut, itemsize)


def backward_vmem(cut: Plan, itemsize: int) -> int:
    """Return an upper estimate of the backward kernel's VMEM, bytes: as forward, and the gradients in float32."""
    per_row = cut.width * (itemsize + 4) + (2 + 2) * SUBLANES * 4
    table = cut.vocab_tile * cut.width * (3 * itemsize + 4 * 4 + 2 * itemsize + _parts(itemsize, 11))
    return cut.rows * per_row + table + _tiles(cut, itemsize)


def _tiles(cut: Plan, itemsize: int) -> int:
    """Return the bytes of six tiles of logits, and of a tile of rows in the parts of its product, two at a time."""
    return 6 * cut.vocab_tile * cut.row_tile * 4 + cut.row_tile * cut.width * _parts(itemsize, 4)


def _parts(itemsize: int, nbytes: int) -> int:
    """Return the extra bytes per element of a float32 operand: the bfloat16 parts of its product.

    The compilers' largest need, measured in the layout [D, V], which needs more.
    """
    return nbytes if itemsize == 4 else 0
