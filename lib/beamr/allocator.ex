defmodule Beamr.Allocator do
  @moduledoc """
  Allocators in a guest's memory.

  | allocator | what it is |
  |---|---|
  | `Beamr.Allocator.Guest` | the guest's own `malloc` and `free`, with a record of what is held |
  | `Beamr.Allocator.Bump` | moves on through memory, growing it as needed, and is reset as a whole |
  | `Beamr.Allocator.Stack` | a region of fixed size that is given back from the top |

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> {:ok, bump} = Beamr.Allocator.Bump.new(wasm)
      iex> {:ok, pointer} = Beamr.Allocator.alloc(bump, 10, tag: :greeting)
      iex> pointer
      65536
      iex> Beamr.Allocator.alloc(bump, 4)
      {:ok, 65552}
      iex> {:ok, %{size: 10, tag: :greeting}} = Beamr.Allocator.lookup(bump, pointer)
      iex> {:ok, stats} = Beamr.Allocator.stats(bump)
      iex> stats
      %{allocated: 14, active: 2, peak: 20, offset: 65556, growths: 1}

  Any process may use an allocator, on any node and inside imports. No two live allocations of
  one allocator overlap, and neither do the regions of two bump or stack allocators of one memory:
  the second is refused with a `Beamr.AllocatorError` that says which other is in the way. Both
  begin at #{0x10000} unless they are told where, so the second of them must be. Nothing is known
  of what the guest's own code does with its memory: where `__heap_base` is exported, all below
  it, and what the guest's `malloc` hands out, is the guest's.

  ## Who owns an allocator

  The process that made it, or the one named by `owner:`. An allocator is a small process beside
  its guest. It ends, and its region is free again, when it is closed, when its owner ends, when
  the instance is closed, and when the server whose guest it is ends or resets itself. It keeps
  no instance alive; one that is left to the garbage collector leaves its allocators to their
  owners. What uses it afterwards gets `reason: :closed`.

  ## How memory grows

  In the process that allocates, before anything is allocated, by as many pages as are missing.
  Processes that need more at the same time take turns, so that none grows it for the others a
  second time. It waits as `Beamr.IO.grow/3` does, for a call in flight to end or to call an
  import; an allocation that needs no growth does not wait. If the memory cannot grow, the error
  is that of `Beamr.IO.grow/3`, and everything is as it was.

  ## Others

  The functions here take any struct whose module implements this behaviour.
  """

  alias Beamr.{AllocatorError, Error}

  @typedoc "An allocator: a struct whose module implements this behaviour."
  @type t :: struct()

  @typedoc """
  An allocation: `time` is when it was made, in microseconds since 1970; `tag` is what was given.
  """
  @type allocation :: %{
          pointer: non_neg_integer(),
          size: pos_integer(),
          time: integer(),
          tag: term()
        }

  @typedoc """
  What has been allocated since the allocator was made or reset.

    * `:allocated` - the bytes of all allocations, without the padding between them;
    * `:active` - how many there are now;
    * `:peak` - the most bytes that were ever in use, padding included and counted from the base
      (of a guest's `malloc`, padding is not known);
    * `:offset` - the address where the next one may begin; nil for a guest's `malloc`;
    * `:growths` - how often memory was grown.
  """
  @type stats :: %{
          allocated: non_neg_integer(),
          active: non_neg_integer(),
          peak: non_neg_integer(),
          offset: non_neg_integer() | nil,
          growths: non_neg_integer()
        }

  @doc "Allocates; the size is at least 1, the alignment a power of two."
  @callback alloc(t(), size :: integer(), alignment :: integer(), tag :: term()) ::
              {:ok, non_neg_integer()} | {:error, Exception.t()}
  @doc "See `free/2`."
  @callback free(t(), pointer :: non_neg_integer()) :: :ok | {:error, Exception.t()}
  @doc "See `reset/1`."
  @callback reset(t()) :: :ok | {:error, Exception.t()}
  @doc "See `stats/1`."
  @callback stats(t()) :: {:ok, stats()} | {:error, Exception.t()}
  @doc "See `allocations/1`."
  @callback allocations(t()) :: {:ok, [allocation()]} | {:error, Exception.t()}
  @doc "See `lookup/2`."
  @callback lookup(t(), pointer :: non_neg_integer()) ::
              {:ok, allocation() | nil} | {:error, Exception.t()}
  @doc "See `close/1`."
  @callback close(t()) :: :ok

  @alignment 8
  @string_alignment 4

  @doc "Where bump and stack allocators begin unless they are told where: #{0x10000}."
  @spec heap_base() :: pos_integer()
  def heap_base, do: 0x10000

  @doc "The bytes of a stack allocator unless it is told how many: #{0x8000}."
  @spec stack_size() :: pos_integer()
  def stack_size, do: 0x8000

  @doc "The bytes of a page of memory, but in memories with pages of their own size: #{0x10000}."
  @spec page_size() :: pos_integer()
  def page_size, do: 0x10000

  @doc """
  Allocates `size` bytes; the bytes there are as they were. Options:

    * `:align` - what the pointer is a multiple of: a power of two, #{@alignment} unless given;
    * `:tag` - any term, for the record.

  Fails with `Beamr.AllocatorError`, for a size below 1, an alignment that is no power of two,
  and where there is no room; or as growing the memory or the guest's `malloc` does.
  """
  @spec alloc(t(), integer(), keyword()) :: {:ok, non_neg_integer()} | {:error, Exception.t()}
  def alloc(allocator, size, opts \\ [])
      when is_struct(allocator) and is_integer(size) and is_list(opts) do
    alloc(allocator, size, opts, @alignment)
  end

  defp alloc(%module{} = allocator, size, opts, alignment) do
    opts = Keyword.validate!(opts, align: alignment, tag: nil)
    alignment = opts[:align]

    cond do
      not is_integer(alignment) ->
        raise ArgumentError, ":align must be an integer, given: #{inspect(alignment)}"

      size < 1 ->
        {:error, %AllocatorError{reason: :size, size: size}}

      alignment < 1 or Bitwise.band(alignment, alignment - 1) != 0 ->
        {:error, %AllocatorError{reason: :alignment, alignment: alignment}}

      true ->
        module.alloc(allocator, size, alignment, opts[:tag])
    end
  end

  @doc "As `alloc/3`, but raises the error."
  @spec alloc!(t(), integer(), keyword()) :: non_neg_integer()
  def alloc!(allocator, size, opts \\ []), do: allocator |> alloc(size, opts) |> Error.unwrap!()

  @doc """
  Allocates room for a string: as many bytes as it has as UTF-8, without a NUL, and at least one.
  Nothing is written. Options are those of `alloc/3`; the alignment is #{@string_alignment} unless
  given.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> bump = Beamr.Allocator.Bump.new!(wasm)
      iex> {:ok, pointer} = Beamr.Allocator.alloc_string(bump, "grün")
      iex> {:ok, %{size: 5}} = Beamr.Allocator.lookup(bump, pointer)
      iex> Beamr.IO.write(wasm, pointer, "grün")
      :ok
  """
  @spec alloc_string(t(), String.t(), keyword()) ::
          {:ok, non_neg_integer()} | {:error, Exception.t()}
  def alloc_string(allocator, string, opts \\ [])
      when is_struct(allocator) and is_binary(string) and is_list(opts) do
    alloc(allocator, max(byte_size(string), 1), opts, @string_alignment)
  end

  @doc "As `alloc_string/3`, but raises the error."
  @spec alloc_string!(t(), String.t(), keyword()) :: non_neg_integer()
  def alloc_string!(allocator, string, opts \\ []) do
    allocator |> alloc_string(string, opts) |> Error.unwrap!()
  end

  @doc """
  Gives an allocation back: see the allocator's module for what that does. A bump allocator
  accepts every pointer and does nothing.
  """
  @spec free(t(), non_neg_integer()) :: :ok | {:error, Exception.t()}
  def free(%module{} = allocator, pointer) when is_integer(pointer) and pointer >= 0 do
    module.free(allocator, pointer)
  end

  @doc "As `free/2`, but raises the error."
  @spec free!(t(), non_neg_integer()) :: :ok
  def free!(allocator, pointer), do: allocator |> free(pointer) |> Error.unwrap!()

  @doc "Gives everything back at once, and begins all statistics anew."
  @spec reset(t()) :: :ok | {:error, Exception.t()}
  def reset(%module{} = allocator), do: module.reset(allocator)

  @doc "As `reset/1`, but raises the error."
  @spec reset!(t()) :: :ok
  def reset!(allocator), do: allocator |> reset() |> Error.unwrap!()

  @doc "What was allocated: see `t:stats/0`."
  @spec stats(t()) :: {:ok, stats()} | {:error, Exception.t()}
  def stats(%module{} = allocator), do: module.stats(allocator)

  @doc "As `stats/1`, but raises the error."
  @spec stats!(t()) :: stats()
  def stats!(allocator), do: allocator |> stats() |> Error.unwrap!()

  @doc "The allocations that there are, in the order they were made in."
  @spec allocations(t()) :: {:ok, [allocation()]} | {:error, Exception.t()}
  def allocations(%module{} = allocator), do: module.allocations(allocator)

  @doc "As `allocations/1`, but raises the error."
  @spec allocations!(t()) :: [allocation()]
  def allocations!(allocator), do: allocator |> allocations() |> Error.unwrap!()

  @doc "The allocation that begins at `pointer`, or nil."
  @spec lookup(t(), non_neg_integer()) :: {:ok, allocation() | nil} | {:error, Exception.t()}
  def lookup(%module{} = allocator, pointer) when is_integer(pointer) and pointer >= 0 do
    module.lookup(allocator, pointer)
  end

  @doc "As `lookup/2`, but raises the error."
  @spec lookup!(t(), non_neg_integer()) :: allocation() | nil
  def lookup!(allocator, pointer), do: allocator |> lookup(pointer) |> Error.unwrap!()

  @doc """
  The allocator as a pair of functions, for `allocator:` of `Beamr.IO.with_alloc/4`.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> bump = Beamr.Allocator.Bump.new!(wasm)
      iex> Beamr.IO.with_alloc(wasm, 8, [allocator: Beamr.Allocator.functions(bump)], fn pointer -> pointer end)
      {:ok, 65536}
  """
  @spec functions(t()) :: Beamr.IO.allocator()
  def functions(allocator) when is_struct(allocator) do
    {&alloc(allocator, &1), &free(allocator, &1)}
  end

  @doc "Ends an allocator; its region is free for another. Closing it again is `:ok` too."
  @spec close(t()) :: :ok
  def close(%module{} = allocator), do: module.close(allocator)
end
