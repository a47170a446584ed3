defmodule Beamr.Allocator.Stack do
  @moduledoc """
  An allocator in a region of fixed size, upwards from its base, that is given back from the top.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 2))|)
      iex> stack = Beamr.Allocator.Stack.new!(wasm)
      iex> Beamr.Allocator.alloc(stack, 100)
      {:ok, 65536}
      iex> Beamr.Allocator.Stack.mark(stack)
      :ok
      iex> Beamr.Allocator.alloc(stack, 8)
      {:ok, 65640}
      iex> Beamr.Allocator.Stack.pop(stack)
      :ok
      iex> {Beamr.Allocator.Stack.used(stack), Beamr.Allocator.Stack.top(stack), Beamr.Allocator.Stack.capacity(stack)}
      {{:ok, 100}, {:ok, 65636}, 32768}

  `pop/1` goes back to the last mark, whoever made it, and gives back all that was allocated
  since, whoever did: marks are for a stack that one process uses, or several by agreement.
  `Beamr.Allocator.free/2` may be used by anybody: it gives an allocation back as soon as all
  those above it are given back too.
  """

  @behaviour Beamr.Allocator

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.Allocator.Book
  alias Beamr.{AllocatorError, Error}

  @enforce_keys [:pid, :base, :size]
  defstruct [:pid, :base, :size]

  @typedoc "A stack allocator. Its fields are private."
  @type t :: %__MODULE__{}

  @doc """
  Makes a stack allocator. Options:

    * `:base` - the first address of its region; #{0x10000} unless given;
    * `:size` - the bytes of its region; #{0x8000} unless given;
    * `:grow` - `false` to fail where memory ends before the region does; it is grown unless
      given;
    * `:memory` - the name of an exported memory;
    * `:owner` - the process it ends with; the calling one unless given.

  Fails with `Beamr.AllocatorError` where its region overlaps another's or is not all in memory,
  and as `Beamr.IO.grow/3` does.
  """
  @spec new(Beamr.guest(), keyword()) :: {:ok, t()} | {:error, Exception.t()}
  def new(guest, opts \\ []) when is_guest(guest) and is_list(opts) do
    opts = Keyword.validate!(opts, [:memory, :owner, base: 0x10000, size: 0x8000, grow: true])
    {base, size} = {opts[:base], opts[:size]}
    Book.check!(:base, base, is_integer(base) and base >= 0)
    Book.check!(:size, size, is_integer(size) and size > 0)
    Book.check!(:grow, opts[:grow], is_boolean(opts[:grow]))

    with {:ok, pid, guest} <- Book.open(guest, :stack, {base, base + size}, true, opts) do
      case cover(guest, opts[:memory], base, base + size, opts[:grow]) do
        {:ok, grown} ->
          with :ok <- Book.request(pid, {:grown, grown}),
               do: {:ok, %__MODULE__{pid: pid, base: base, size: size}}

        error ->
          Book.close(pid)
          error
      end
    end
  end

  defp cover(guest, memory, _base, limit, true) do
    with {:ok, _bytes, grown} <- Book.cover(guest, memory, limit), do: {:ok, grown}
  end

  defp cover(guest, memory, base, limit, false) do
    case Beamr.IO.size(guest, memory: memory) do
      {:ok, bytes} when bytes >= limit ->
        {:ok, 0}

      {:ok, bytes} ->
        {:error, %AllocatorError{reason: :uncovered, base: base, needed: limit, available: bytes}}

      error ->
        error
    end
  end

  @doc "As `new/2`, but raises the error."
  @spec new!(Beamr.guest(), keyword()) :: t()
  def new!(guest, opts \\ []), do: guest |> new(opts) |> Error.unwrap!()

  @doc "Marks the top, for `pop/1` to go back to."
  @spec mark(t()) :: :ok | {:error, AllocatorError.t()}
  def mark(%__MODULE__{pid: pid}), do: Book.request(pid, :mark)

  @doc "As `mark/1`, but raises the error."
  @spec mark!(t()) :: :ok
  def mark!(stack), do: stack |> mark() |> Error.unwrap!()

  @doc """
  Goes back to the last mark, which is used up by it. Without a mark it is an error
  (`reason: :no_mark`).
  """
  @spec pop(t()) :: :ok | {:error, AllocatorError.t()}
  def pop(%__MODULE__{pid: pid}), do: Book.request(pid, :pop)

  @doc "As `pop/1`, but raises the error."
  @spec pop!(t()) :: :ok
  def pop!(stack), do: stack |> pop() |> Error.unwrap!()

  @doc "The bytes in use, padding included."
  @spec used(t()) :: {:ok, non_neg_integer()} | {:error, AllocatorError.t()}
  def used(%__MODULE__{base: base} = stack) do
    with {:ok, top} <- top(stack), do: {:ok, top - base}
  end

  @doc "As `used/1`, but raises the error."
  @spec used!(t()) :: non_neg_integer()
  def used!(stack), do: stack |> used() |> Error.unwrap!()

  @doc "The bytes of the whole region."
  @spec capacity(t()) :: pos_integer()
  def capacity(%__MODULE__{size: size}), do: size

  @doc "The address behind the last byte in use."
  @spec top(t()) :: {:ok, non_neg_integer()} | {:error, AllocatorError.t()}
  def top(%__MODULE__{pid: pid}) do
    with {:ok, %{offset: top}} <- Book.request(pid, :stats), do: {:ok, top}
  end

  @doc "As `top/1`, but raises the error."
  @spec top!(t()) :: non_neg_integer()
  def top!(stack), do: stack |> top() |> Error.unwrap!()

  # Memory covers the region since `new/2`, and never shrinks.
  @impl true
  def alloc(%__MODULE__{pid: pid} = stack, size, alignment, tag) do
    covered = stack.base + stack.size
    Book.request(pid, {:alloc, size, alignment, tag, covered, 0})
  end

  @impl true
  def free(%__MODULE__{pid: pid}, pointer), do: Book.request(pid, {:free, pointer})

  @impl true
  def reset(%__MODULE__{pid: pid}), do: Book.request(pid, :reset)

  @impl true
  def stats(%__MODULE__{pid: pid}), do: Book.request(pid, :stats)

  @impl true
  def allocations(%__MODULE__{pid: pid}), do: Book.request(pid, :allocations)

  @impl true
  def lookup(%__MODULE__{pid: pid}, pointer), do: Book.request(pid, {:lookup, pointer})

  @impl true
  def close(%__MODULE__{pid: pid}), do: Book.close(pid)
end
