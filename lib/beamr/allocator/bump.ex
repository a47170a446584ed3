defmodule Beamr.Allocator.Bump do
  @moduledoc """
  An allocator that only moves on: the next allocation comes behind the last, and all of them are
  given back at once by `Beamr.Allocator.reset/1`. `Beamr.Allocator.free/2` does nothing.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> bump = Beamr.Allocator.Bump.new!(wasm, base: 1024, limit: 2048)
      iex> Beamr.Allocator.alloc(bump, 1000)
      {:ok, 1024}
      iex> {:error, error} = Beamr.Allocator.alloc(bump, 100)
      iex> {error.reason, error.needed, error.available}
      {:overflow, 100, 24}
      iex> Beamr.Allocator.reset(bump)
      :ok
      iex> Beamr.Allocator.alloc(bump, 100)
      {:ok, 1024}

  A size is not rounded; a pointer is the next multiple of its alignment. Each allocation is
  recorded until the reset, in the allocator's process: a few hundred bytes for each.
  """

  @behaviour Beamr.Allocator

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.Allocator.Book
  alias Beamr.Error

  @enforce_keys [:pid, :guest, :memory, :base, :limit]
  defstruct [:pid, :guest, :memory, :base, :limit]

  @typedoc "A bump allocator. Its fields are private."
  @type t :: %__MODULE__{}

  @doc """
  Makes a bump allocator. Options:

    * `:base` - the first address it may use; #{0x10000} unless given;
    * `:limit` - the first address it may not use; none unless given, so that it may use all that
      the memory can grow to;
    * `:records` - `false` to record no allocations, only statistics;
    * `:memory` - the name of an exported memory;
    * `:owner` - the process it ends with; the calling one unless given.

  Fails with `Beamr.AllocatorError` where its region overlaps another's, and with
  `Beamr.MemoryError` where there is no such memory.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> {:ok, _bump} = Beamr.Allocator.Bump.new(wasm)
      iex> {:error, error} = Beamr.Allocator.Stack.new(wasm)
      iex> {error.reason, error.other.kind, error.other.base, error.other.limit}
      {:overlap, :bump, 65536, :infinity}
      iex> {:ok, _stack} = Beamr.Allocator.Stack.new(wasm, base: 1024, size: 512)
  """
  @spec new(Beamr.guest(), keyword()) :: {:ok, t()} | {:error, Exception.t()}
  def new(guest, opts \\ []) when is_guest(guest) and is_list(opts) do
    opts =
      Keyword.validate!(opts, [:memory, :owner, base: 0x10000, limit: :infinity, records: true])

    Book.check!(:base, opts[:base], is_integer(opts[:base]) and opts[:base] >= 0)

    limit? =
      opts[:limit] == :infinity or (is_integer(opts[:limit]) and opts[:limit] > opts[:base])

    Book.check!(:limit, opts[:limit], limit?)
    Book.check!(:records, opts[:records], is_boolean(opts[:records]))

    with {:ok, pid, guest} <-
           Book.open(guest, :bump, {opts[:base], opts[:limit]}, opts[:records], opts) do
      {:ok,
       %__MODULE__{
         pid: pid,
         guest: guest,
         memory: opts[:memory],
         base: opts[:base],
         limit: opts[:limit]
       }}
    end
  end

  @doc "As `new/2`, but raises the error."
  @spec new!(Beamr.guest(), keyword()) :: t()
  def new!(guest, opts \\ []), do: guest |> new(opts) |> Error.unwrap!()

  @impl true
  def alloc(%__MODULE__{guest: guest, memory: memory} = bump, size, alignment, tag) do
    with {:ok, bytes} <- Beamr.IO.size(guest, memory: memory) do
      alloc(bump, size, alignment, tag, bytes, 0)
    end
  end

  defp alloc(bump, size, alignment, tag, bytes, grown) do
    with {:grow, needed} <- Book.request(bump.pid, {:alloc, size, alignment, tag, bytes, grown}),
         {:ok, bytes, grown} <- grow(bump, needed) do
      alloc(bump, size, alignment, tag, bytes, grown)
    end
  end

  # Whoever needs more memory grows it himself, because only he knows whether he has the guest.
  defp grow(bump, needed) do
    with {:ok, _bytes, _pages} = grown <- Book.cover(bump.guest, bump.memory, needed) do
      grown
    else
      error ->
        Book.leave(bump.pid)
        error
    end
  catch
    kind, reason ->
      Book.leave(bump.pid)
      :erlang.raise(kind, reason, __STACKTRACE__)
  end

  @impl true
  def free(%__MODULE__{}, _pointer), do: :ok

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
