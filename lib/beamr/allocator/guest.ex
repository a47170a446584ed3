defmodule Beamr.Allocator.Guest do
  @moduledoc """
  The guest's own `malloc` and `free` as an allocator: it knows what it holds.

      iex> wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1)
      ...>   (func (export "malloc") (param i32) (result i32) (i32.const 1024))
      ...>   (func (export "free") (param i32)))|)
      iex> {:ok, malloc} = Beamr.Allocator.Guest.new(wasm)
      iex> {:ok, pointer} = Beamr.Allocator.alloc(malloc, 16, tag: "buffer")
      iex> {:ok, [%{pointer: 1024, size: 16, tag: "buffer"}]} = Beamr.Allocator.allocations(malloc)
      iex> Beamr.Allocator.free(malloc, pointer)
      :ok
      iex> {:error, error} = Beamr.Allocator.free(malloc, pointer)
      iex> error.reason
      :unknown_pointer

  Where `malloc` does not align as much as is asked for, more is taken, and the pointer lies
  inside of it. `Beamr.Allocator.reset/1` frees what is held. When the allocator is closed or its
  owner ends, what it held stays allocated in the guest.
  """

  @behaviour Beamr.Allocator

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.Allocator.Book
  alias Beamr.Error

  @enforce_keys [:pid, :guest]
  defstruct [:pid, :guest]

  @typedoc "An allocator of the guest's. Its fields are private."
  @type t :: %__MODULE__{}

  @doc "Makes an allocator of the guest's `malloc` and `free`. `owner:` is the process it ends with."
  @spec new(Beamr.guest(), keyword()) :: {:ok, t()} | {:error, Exception.t()}
  def new(guest, opts \\ []) when is_guest(guest) and is_list(opts) do
    opts = Keyword.validate!(opts, [:owner])

    with {:ok, pid, guest} <- Book.open(guest, :guest, nil, true, opts),
         do: {:ok, %__MODULE__{pid: pid, guest: guest}}
  end

  @doc "As `new/2`, but raises the error."
  @spec new!(Beamr.guest(), keyword()) :: t()
  def new!(guest, opts \\ []), do: guest |> new(opts) |> Error.unwrap!()

  @impl true
  def alloc(%__MODULE__{pid: pid, guest: guest}, size, alignment, tag) do
    with {:ok, block, pointer} <- aligned(guest, size, alignment) do
      case Book.request(pid, {:record, pointer, size, tag, block}) do
        :ok ->
          {:ok, pointer}

        error ->
          Beamr.IO.free(guest, block)
          error
      end
    end
  end

  defp aligned(guest, size, alignment) do
    with {:ok, block} <- Beamr.IO.malloc(guest, size) do
      if rem(block, alignment) == 0 do
        {:ok, block, block}
      else
        with :ok <- Beamr.IO.free(guest, block),
             {:ok, block} <- Beamr.IO.malloc(guest, size + alignment - 1),
             do: {:ok, block, div(block + alignment - 1, alignment) * alignment}
      end
    end
  end

  @impl true
  def free(%__MODULE__{pid: pid, guest: guest}, pointer) do
    with {:ok, block} <- Book.request(pid, {:forget, pointer}), do: Beamr.IO.free(guest, block)
  end

  @impl true
  def reset(%__MODULE__{pid: pid, guest: guest}) do
    with {:ok, blocks} <- Book.request(pid, :forget_all) do
      results = Enum.map(blocks, &Beamr.IO.free(guest, &1))
      Enum.find(results, :ok, &match?({:error, _error}, &1))
    end
  end

  @impl true
  def stats(%__MODULE__{pid: pid}), do: Book.request(pid, :stats)

  @impl true
  def allocations(%__MODULE__{pid: pid}), do: Book.request(pid, :allocations)

  @impl true
  def lookup(%__MODULE__{pid: pid}, pointer), do: Book.request(pid, {:lookup, pointer})

  @impl true
  def close(%__MODULE__{pid: pid}), do: Book.close(pid)
end
