defmodule Beamr.IO do
  @moduledoc """
  Reading and writing a guest's linear memory, and allocating in it.

  Offsets and lengths are bytes. A guard refuses what is no guest, no integer or negative
  (`FunctionClauseError`); what lies outside the memory is `{:error, %Beamr.MemoryError{}}`,
  whatever the numbers. Every function may be called from any process, also while a call is
  in flight, and from inside an import: it acts on the memory between two slices of the guest,
  never in the middle of one.

  Reads and writes act on the memory that the module exports as `"memory"`, or else on the
  first that it exports; `memory: name` chooses another. A module that exports none has a memory
  of 0 bytes.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.IO.size(wasm)
      {:ok, 65536}
      iex> Beamr.IO.write(wasm, 16, "hello")
      :ok
      iex> Beamr.IO.read(wasm, 16, 5)
      {:ok, "hello"}
      iex> {:error, error} = Beamr.IO.read(wasm, 65534, 4)
      iex> {error.reason, error.offset, error.length, error.size}
      {:out_of_bounds, 65534, 4, 65536}
  """

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.{CallError, Error, Guest, Instance, MemoryError, Native}

  @typedoc "`memory:` names an exported memory."
  @type option :: {:memory, String.t() | nil}

  @chunk 4096
  @timeout 5_000

  @doc """
  The memory's size in bytes: a multiple of its page size, 0 without an exported memory.

      iex> Beamr.IO.size(Beamr.instantiate!("(module)"))
      {:ok, 0}
  """
  @spec size(Beamr.guest(), [option()]) :: {:ok, non_neg_integer()} | {:error, MemoryError.t()}
  def size(guest, opts \\ [])

  def size(%Instance{ref: ref}, opts), do: size_at(ref, opts)

  def size(guest, opts) when is_guest(guest) do
    case Guest.place(guest, {__MODULE__, :size, [guest, opts]}) do
      {:instance, ref} -> size_at(ref, opts)
      {:remote, node, guest} -> Guest.remote(node, __MODULE__, :size, [guest, opts])
    end
  end

  defp size_at(ref, opts) do
    memory = memory(opts)

    case Native.memory_size(ref, memory) do
      {:ok, _size} = ok -> ok
      :dirty -> ref |> Native.memory_size_dirty(memory) |> answer(memory, nil, nil)
      error -> answer(error, memory, nil, nil)
    end
  end

  @doc "As `size/2`, but raises the error."
  @spec size!(Beamr.guest(), [option()]) :: non_neg_integer()
  def size!(guest, opts \\ []), do: guest |> size(opts) |> Error.unwrap!()

  @doc """
  Reads `length` bytes at `offset`. A length of 0 is `{:ok, ""}` up to the very end of memory.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1) (data (i32.const 8) "wasm"))|)
      iex> Beamr.IO.read(wasm, 8, 4)
      {:ok, "wasm"}
      iex> Beamr.IO.read(wasm, 65536, 0)
      {:ok, ""}
  """
  @spec read(Beamr.guest(), non_neg_integer(), non_neg_integer(), [option()]) ::
          {:ok, binary()} | {:error, MemoryError.t()}
  def read(guest, offset, length, opts \\ [])

  def read(%Instance{ref: ref}, offset, length, opts)
      when is_integer(offset) and offset >= 0 and is_integer(length) and length >= 0 do
    read_at(ref, offset, length, opts)
  end

  def read(guest, offset, length, opts)
      when is_guest(guest) and is_integer(offset) and offset >= 0 and is_integer(length) and
             length >= 0 do
    args = [guest, offset, length, opts]

    case Guest.place(guest, {__MODULE__, :read, args}) do
      {:instance, ref} -> read_at(ref, offset, length, opts)
      {:remote, node, guest} -> Guest.remote(node, __MODULE__, :read, [guest | tl(args)])
    end
  end

  defp read_at(ref, offset, length, opts) do
    memory = memory(opts)

    case Native.memory_read(ref, memory, offset, length) do
      {:ok, _bytes} = ok ->
        ok

      :dirty ->
        ref |> Native.memory_read_dirty(memory, offset, length) |> answer(memory, offset, length)

      error ->
        answer(error, memory, offset, length)
    end
  end

  @doc "As `read/4`, but raises the error."
  @spec read!(Beamr.guest(), non_neg_integer(), non_neg_integer(), [option()]) :: binary()
  def read!(guest, offset, length, opts \\ []) do
    guest |> read(offset, length, opts) |> Error.unwrap!()
  end

  @doc """
  Writes iodata at `offset`, all of it or nothing. Iodata is not flattened first.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.IO.write(wasm, 0, ["he", [?l | "lo"]])
      :ok
      iex> Beamr.IO.read(wasm, 0, 5)
      {:ok, "hello"}

  The data and the offset may also come in the other order. Raises `ArgumentError` for a list
  that is no iodata.
  """
  @spec write(Beamr.guest(), non_neg_integer(), iodata(), [option()]) ::
          :ok | {:error, MemoryError.t()}
  @spec write(Beamr.guest(), iodata(), non_neg_integer(), [option()]) ::
          :ok | {:error, MemoryError.t()}
  def write(guest, offset, data, opts \\ [])

  def write(%Instance{ref: ref}, offset, data, opts)
      when is_integer(offset) and offset >= 0 and (is_binary(data) or is_list(data)) do
    write_at(ref, memory(opts), offset, data, false)
  end

  def write(guest, offset, data, opts)
      when is_guest(guest) and is_integer(offset) and offset >= 0 and
             (is_binary(data) or is_list(data)) do
    place_and_write(guest, offset, data, false, opts)
  end

  def write(guest, data, offset, opts)
      when is_guest(guest) and (is_binary(data) or is_list(data)) and is_integer(offset) and
             offset >= 0 do
    write(guest, offset, data, opts)
  end

  @doc false
  @spec place_and_write(Beamr.guest(), non_neg_integer(), iodata(), boolean(), [option()]) ::
          :ok | {:error, MemoryError.t()}
  def place_and_write(guest, offset, data, terminated, opts) do
    args = [guest, offset, data, terminated, opts]

    case Guest.place(guest, {__MODULE__, :write, [guest, offset, data, opts]}) do
      {:instance, ref} ->
        write_at(ref, memory(opts), offset, data, terminated)

      {:remote, node, guest} ->
        Guest.remote(node, __MODULE__, :place_and_write, [guest | tl(args)])
    end
  end

  defp write_at(ref, memory, offset, data, terminated) do
    result =
      case Native.memory_write(ref, memory, offset, data, terminated) do
        :dirty -> Native.memory_write_dirty(ref, memory, offset, data, terminated)
        result -> result
      end

    case result do
      :ok ->
        :ok

      :badarg ->
        raise ArgumentError, "not iodata: #{inspect(data)}"

      error ->
        length = :erlang.iolist_size(data) + if(terminated, do: 1, else: 0)
        answer(error, memory, offset, length)
    end
  end

  @doc "As `write/4`, but raises the error."
  @spec write!(Beamr.guest(), non_neg_integer(), iodata(), [option()]) :: :ok
  @spec write!(Beamr.guest(), iodata(), non_neg_integer(), [option()]) :: :ok
  def write!(guest, offset, data, opts \\ []) do
    guest |> write(offset, data, opts) |> Error.unwrap!()
  end

  @doc """
  Reads the bytes at `offset` up to the first NUL, which is left out.

  The NUL is looked for in chunks of `chunk` bytes (#{@chunk} unless given), never past the end
  of memory. Small chunks find the end of short strings at once, large ones are faster for long
  strings; the answer is the same.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1) (data (i32.const 8) "wasm\\\\00"))|)
      iex> Beamr.IO.read_string(wasm, 8)
      {:ok, "wasm"}
  """
  @spec read_string(Beamr.guest(), non_neg_integer(), pos_integer(), [option()]) ::
          {:ok, binary()} | {:error, MemoryError.t()}
  def read_string(guest, offset, chunk \\ @chunk, opts \\ [])

  def read_string(guest, offset, chunk, opts)
      when is_guest(guest) and is_integer(offset) and offset >= 0 and is_integer(chunk) and
             chunk > 0 do
    args = [guest, offset, chunk, opts]

    case Guest.place(guest, {__MODULE__, :read_string, args}) do
      {:instance, ref} -> read_string_at(ref, offset, chunk, opts)
      {:remote, node, guest} -> Guest.remote(node, __MODULE__, :read_string, [guest | tl(args)])
    end
  end

  defp read_string_at(ref, offset, chunk, opts) do
    memory = memory(opts)

    case Native.memory_read_string(ref, memory, offset, chunk) do
      {:ok, _bytes} = ok ->
        ok

      :dirty ->
        ref |> Native.memory_read_string_dirty(memory, offset, chunk) |> answer(memory, offset, 1)

      error ->
        answer(error, memory, offset, 1)
    end
  end

  @doc "As `read_string/4`, but raises the error."
  @spec read_string!(Beamr.guest(), non_neg_integer(), pos_integer(), [option()]) :: binary()
  def read_string!(guest, offset, chunk \\ @chunk, opts \\ []) do
    guest |> read_string(offset, chunk, opts) |> Error.unwrap!()
  end

  @doc """
  Allocates room for the string with the guest's `malloc`, writes it there with a NUL behind it,
  and answers the pointer. `free/2` gives the room back.

  A NUL inside the string is written as it is; `read_string/2` will stop there.
  """
  @spec write_string(Beamr.guest(), iodata()) ::
          {:ok, pos_integer()} | {:error, Exception.t()}
  def write_string(guest, string)
      when is_guest(guest) and (is_binary(string) or is_list(string)) do
    with {:ok, pointer} <- malloc(guest, :erlang.iolist_size(string) + 1),
         :ok <- place_and_write(guest, pointer, string, true, []) do
      {:ok, pointer}
    end
  end

  @doc "As `write_string/2`, but raises the error."
  @spec write_string!(Beamr.guest(), iodata()) :: pos_integer()
  def write_string!(guest, string), do: guest |> write_string(string) |> Error.unwrap!()

  @doc """
  Calls the guest's own `malloc` for `length` bytes. Pointers are unsigned.

  It is a call like any other: `{:error, %Beamr.CallError{reason: :unknown_function}}` where the
  module exports no `malloc`, and `{:error, %Beamr.MemoryError{reason: :malloc_failed}}` where
  it answers 0.
  """
  @spec malloc(Beamr.guest(), non_neg_integer()) :: {:ok, pos_integer()} | {:error, Exception.t()}
  def malloc(guest, length) when is_guest(guest) and is_integer(length) and length >= 0 do
    case Guest.call(guest, "malloc", [length], @timeout, :auto, true) do
      {:ok, [0]} ->
        {:error, %MemoryError{reason: :malloc_failed, length: length}}

      {:ok, [pointer]} when is_integer(pointer) ->
        {:ok, pointer}

      {:ok, results} ->
        {:error, %CallError{reason: :result, function: "malloc", given: results}}

      error ->
        error
    end
  end

  @doc "As `malloc/2`, but raises the error."
  @spec malloc!(Beamr.guest(), non_neg_integer()) :: pos_integer()
  def malloc!(guest, length), do: guest |> malloc(length) |> Error.unwrap!()

  @doc "Calls the guest's own `free` with the pointer."
  @spec free(Beamr.guest(), non_neg_integer()) :: :ok | {:error, Exception.t()}
  def free(guest, pointer) when is_guest(guest) and is_integer(pointer) and pointer >= 0 do
    with {:ok, _results} <- Guest.call(guest, "free", [pointer], @timeout, :auto, true),
         do: :ok
  end

  @doc "As `free/2`, but raises the error."
  @spec free!(Beamr.guest(), non_neg_integer()) :: :ok
  def free!(guest, pointer), do: guest |> free(pointer) |> Error.unwrap!()

  defp memory([]), do: nil

  defp memory(opts) do
    case Keyword.validate!(opts, memory: nil)[:memory] do
      name when is_binary(name) or is_nil(name) -> name
      other -> raise ArgumentError, ":memory must be a string, given: #{inspect(other)}"
    end
  end

  defp answer({:ok, _value} = ok, _memory, _offset, _length), do: ok

  defp answer({:error, reason}, memory, offset, length) do
    {:error, %{Error.memory(reason, offset, length) | memory: memory}}
  end
end
