defmodule Beamr.IO do
  @moduledoc """
  Reading and writing a guest's linear memory, and allocating in it.

  Offsets and lengths are bytes. A guard refuses what is no guest, no integer or negative
  (`FunctionClauseError`); what lies outside the memory is `{:error, %Beamr.MemoryError{}}`,
  whatever the numbers. Every function may be called from any process, also while a call is
  in flight, and from inside an import: it acts on the memory between two slices of the guest,
  never in the middle of one.

  Reads and writes act on the memory that the module exports as `"memory"`, or else on the
  first that it exports; `memory: name` chooses another. Where a module exports none, the one it
  imports as `"memory"` or else the first that it imports is meant, and imported memories have
  their import's name wherever nothing is exported under it. A module that has none has a memory of
  0 bytes.

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

  ## Numbers

  `read_i8/3` to `read_f64/3` and `write_i8/4` to `write_f64/4` read and write one number,
  `read_array/5` and `write_array/5` many that lie side by side, `read_many/3` and `write_many/3`
  what lies here and there; each is one crossing, and a write is all or nothing. Numbers are
  little-endian and need no alignment. What the BEAM has no float for is `:nan`, `:infinity` or
  `:neg_infinity`; the bits of a NaN are not kept.

  An integer that its type does not hold is `{:error, %Beamr.MemoryError{reason:
  :value_out_of_range}}`; with `wrap: true` it is written modulo 2^8, 2^16, 2^32 or 2^64. Numbers
  for `:f32` are rounded to the nearest, once; those that would become infinite are refused.

  ## Who frees

  What `malloc/2` and `write_string/2` allocate is held until `free/2`; `held/1` lists it.
  `with_string/3`, `with_bytes/3` and `with_alloc/4` free by themselves.
  """

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.{CallError, Error, Guest, Hexdump, Instance, MemoryError, Native}

  # A call less for each of the smallest operations, which take as long as a few.
  @compile {:inline, memory: 1, write_at: 5}

  @typedoc "`memory:` names a memory."
  @type option :: {:memory, String.t() | nil}

  @typedoc "`wrap: true` takes integers modulo what their type can hold."
  @type write_option :: option() | {:wrap, boolean()}

  @typedoc "What becomes of bytes that are no UTF-8: U+FFFD in their place, or an error."
  @type utf8_option :: option() | {:invalid, :replace | :error}

  @typedoc "The type of a number in memory."
  @type type :: :i8 | :u8 | :i16 | :u16 | :i32 | :u32 | :i64 | :u64 | :f32 | :f64

  @typedoc "A number in memory."
  @type value :: number() | :nan | :infinity | :neg_infinity

  @typedoc """
  Two functions that allocate and free: `alloc.(size)` answers `{:ok, pointer}` or an error,
  `free.(pointer)` answers `:ok` or an error.
  """
  @type allocator ::
          {(non_neg_integer() -> {:ok, non_neg_integer()} | {:error, Exception.t()}),
           (non_neg_integer() -> :ok | {:error, Exception.t()})}

  @integers [
    i8: {-0x80, 0x7F},
    u8: {0, 0xFF},
    i16: {-0x8000, 0x7FFF},
    u16: {0, 0xFFFF},
    i32: {-0x8000_0000, 0x7FFF_FFFF},
    u32: {0, 0xFFFF_FFFF},
    i64: {-0x8000_0000_0000_0000, 0x7FFF_FFFF_FFFF_FFFF},
    u64: {0, 0xFFFF_FFFF_FFFF_FFFF}
  ]
  @sizes [i8: 1, u8: 1, i16: 2, u16: 2, i32: 4, u32: 4, i64: 8, u64: 8, f32: 4, f64: 8]
  @types Keyword.keys(@sizes)
  @non_finite [:nan, :infinity, :neg_infinity]
  @page 65_536

  defguardp is_natural(term) when is_integer(term) and term >= 0

  defguardp is_for(type, value)
            when is_integer(value) or
                   (type in [:f32, :f64] and (is_float(value) or value in @non_finite))

  defguardp is_iodata(term) when is_binary(term) or is_list(term)

  # Asks on this scheduler, and again on a dirty one where that would take too long.
  defmacrop native(name, args) do
    quote do
      case Native.unquote(name)(unquote_splicing(args)) do
        :dirty -> Native.unquote(:"#{name}_dirty")(unquote_splicing(args))
        result -> result
      end
    end
  end

  # Does something with the guest's instance, or all of it on the guest's node.
  defp at(guest, function, args, local) do
    case Guest.place(guest, {__MODULE__, function, [guest | args]}) do
      {:instance, ref} -> local.(ref)
      {:remote, node, guest} -> Guest.remote(node, __MODULE__, function, [guest | args])
    end
  end

  @chunk 4096
  @timeout 5_000

  @doc """
  The memory's size in bytes: a multiple of its page size, 0 without a memory.

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
  The memory's size in pages of 65,536 bytes.

      iex> Beamr.IO.pages(Beamr.instantiate!(~s|(module (memory (export "memory") 3))|))
      {:ok, 3}
  """
  @spec pages(Beamr.guest(), [option()]) :: {:ok, non_neg_integer()} | {:error, MemoryError.t()}
  def pages(guest, opts \\ []) when is_guest(guest) do
    with {:ok, size} <- size(guest, opts), do: {:ok, div(size, @page)}
  end

  @doc "As `pages/2`, but raises the error."
  @spec pages!(Beamr.guest(), [option()]) :: non_neg_integer()
  def pages!(guest, opts \\ []), do: guest |> pages(opts) |> Error.unwrap!()

  @doc """
  Grows the memory by so many pages of 65,536 bytes, and answers how many there were before. A
  growth that is refused changes nothing.

  It waits, for 5 seconds at most, for a call that is in flight to end or to call an import.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1 3))|)
      iex> Beamr.IO.grow(wasm, 2)
      {:ok, 1}
      iex> Beamr.IO.grow(wasm, 0)
      {:ok, 3}
      iex> {:error, error} = Beamr.IO.grow(wasm, 1)
      iex> {error.reason, error.length, error.size}
      {:cannot_grow, 65536, 196608}
  """
  @spec grow(Beamr.guest(), non_neg_integer(), [option()]) ::
          {:ok, non_neg_integer()} | {:error, MemoryError.t()}
  def grow(guest, pages, opts \\ []) when is_guest(guest) and is_natural(pages) do
    at(guest, :grow, [pages, opts], fn ref ->
      memory = memory(opts)

      ref
      |> Instance.attempt(:memory_grow, "", pages, memory)
      |> answer(memory, nil, pages * @page)
    end)
  end

  @doc "As `grow/3`, but raises the error."
  @spec grow!(Beamr.guest(), non_neg_integer(), [option()]) :: non_neg_integer()
  def grow!(guest, pages, opts \\ []), do: guest |> grow(pages, opts) |> Error.unwrap!()

  @doc """
  Whether `length` bytes at `offset` lie inside the memory. There is none that is not exported,
  and none in a closed instance.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.IO.valid_range?(wasm, 65536, 0)
      true
      iex> Beamr.IO.valid_range?(wasm, 65536, 1)
      false
  """
  @spec valid_range?(Beamr.guest(), non_neg_integer(), non_neg_integer(), [option()]) :: boolean()
  def valid_range?(guest, offset, length, opts \\ [])
      when is_guest(guest) and is_natural(offset) and is_natural(length) do
    case size(guest, opts) do
      {:ok, size} -> offset + length <= size
      {:error, _error} -> false
    end
  end

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
    case Native.memory_write(ref, memory, offset, data, terminated) do
      :ok ->
        :ok

      :dirty ->
        ref
        |> Native.memory_write_dirty(memory, offset, data, terminated)
        |> written(memory, offset, data, terminated)

      error ->
        written(error, memory, offset, data, terminated)
    end
  end

  defp written(:ok, _memory, _offset, _data, _terminated), do: :ok

  defp written(:badarg, _memory, _offset, data, _terminated) do
    raise ArgumentError, "not iodata: #{inspect(data)}"
  end

  defp written(error, memory, offset, data, terminated) do
    length = :erlang.iolist_size(data) + if(terminated, do: 1, else: 0)
    answer(error, memory, offset, length)
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
  Reads UTF-8 of known length. Bytes that are no UTF-8 become U+FFFD, one for each maximal part,
  as in the WHATWG's decoder; with `invalid: :error` they are
  `{:error, %Beamr.MemoryError{reason: :invalid_utf8}}` with the `offset` of the first.

      iex> wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1)
      ...>   (data (i32.const 0) "caf\\c3\\a9 \\ff"))|)
      iex> Beamr.IO.read_utf8(wasm, 0, 5)
      {:ok, "café"}
      iex> Beamr.IO.read_utf8(wasm, 0, 7)
      {:ok, "café \uFFFD"}
      iex> {:error, error} = Beamr.IO.read_utf8(wasm, 0, 7, invalid: :error)
      iex> {error.reason, error.offset}
      {:invalid_utf8, 6}
  """
  @spec read_utf8(Beamr.guest(), non_neg_integer(), non_neg_integer(), [utf8_option()]) ::
          {:ok, String.t()} | {:error, MemoryError.t()}
  def read_utf8(guest, offset, length, opts \\ [])
      when is_guest(guest) and is_natural(offset) and is_natural(length) do
    at(guest, :read_utf8, [offset, length, opts], fn ref ->
      {memory, replace} = utf8_options(opts)

      native(:utf8_read, [ref, memory, offset, length, replace])
      |> answer(memory, offset, length)
    end)
  end

  @doc "As `read_utf8/4`, but raises the error."
  @spec read_utf8!(Beamr.guest(), non_neg_integer(), non_neg_integer(), [utf8_option()]) ::
          String.t()
  def read_utf8!(guest, offset, length, opts \\ []) do
    guest |> read_utf8(offset, length, opts) |> Error.unwrap!()
  end

  @doc """
  Writes a string as UTF-8, with no NUL behind it and no length before it, and answers how many
  bytes that were. What is no UTF-8 in the string is treated as by `read_utf8/4`.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.IO.write_utf8(wasm, 16, "café")
      {:ok, 5}
  """
  @spec write_utf8(Beamr.guest(), non_neg_integer(), String.t(), [utf8_option()]) ::
          {:ok, non_neg_integer()} | {:error, MemoryError.t()}
  def write_utf8(guest, offset, string, opts \\ [])
      when is_guest(guest) and is_natural(offset) and is_binary(string) do
    at(guest, :write_utf8, [offset, string, opts], fn ref ->
      {memory, replace} = utf8_options(opts)

      case native(:utf8_write, [ref, memory, offset, string, replace]) do
        {:error, {:at, length, reason}} -> answer({:error, reason}, memory, offset, length)
        result -> answer(result, memory, offset, byte_size(string))
      end
    end)
  end

  @doc "As `write_utf8/4`, but raises the error."
  @spec write_utf8!(Beamr.guest(), non_neg_integer(), String.t(), [utf8_option()]) ::
          non_neg_integer()
  def write_utf8!(guest, offset, string, opts \\ []) do
    guest |> write_utf8(offset, string, opts) |> Error.unwrap!()
  end

  for {type, size} <- @sizes do
    read = :"read_#{type}"
    write = :"write_#{type}"

    {holds, example, value} =
      case @integers[type] do
        {low, high} ->
          {"an integer from #{low} to #{high}", low, quote(do: integer())}

        nil ->
          {"a float of #{size * 8} bits", -0.0, quote(do: value())}
      end

    @doc """
    Reads #{holds} at `offset` (#{size} byte#{if size > 1, do: "s"}).

        iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
        iex> Beamr.IO.#{write}(wasm, 9, #{example})
        :ok
        iex> Beamr.IO.#{read}(wasm, 9)
        {:ok, #{example}}
    """
    @spec unquote(read)(Beamr.guest(), non_neg_integer(), [option()]) ::
            {:ok, unquote(value)} | {:error, MemoryError.t()}
    def unquote(read)(guest, offset, opts \\ [])

    def unquote(read)(%Instance{ref: ref}, offset, opts) when is_natural(offset) do
      read_number(ref, unquote(type), offset, opts)
    end

    def unquote(read)(guest, offset, opts) when is_guest(guest) and is_natural(offset) do
      at(guest, unquote(read), [offset, opts], &read_number(&1, unquote(type), offset, opts))
    end

    @doc "As `#{read}/3`, but raises the error."
    @spec unquote(:"#{read}!")(Beamr.guest(), non_neg_integer(), [option()]) ::
            unquote(value)
    def unquote(:"#{read}!")(guest, offset, opts \\ []) do
      guest |> unquote(read)(offset, opts) |> Error.unwrap!()
    end

    @doc "Writes #{holds} at `offset` (#{size} byte#{if size > 1, do: "s"}); see `#{read}/3`."
    @spec unquote(write)(Beamr.guest(), non_neg_integer(), unquote(value), [write_option()]) ::
            :ok | {:error, MemoryError.t()}
    def unquote(write)(guest, offset, value, opts \\ [])

    def unquote(write)(%Instance{ref: ref}, offset, value, opts)
        when is_natural(offset) and is_for(unquote(type), value) do
      write_number(ref, unquote(type), offset, value, opts)
    end

    def unquote(write)(guest, offset, value, opts)
        when is_guest(guest) and is_natural(offset) and is_for(unquote(type), value) do
      at(guest, unquote(write), [offset, value, opts], fn ref ->
        write_number(ref, unquote(type), offset, value, opts)
      end)
    end

    @doc "As `#{write}/4`, but raises the error."
    @spec unquote(:"#{write}!")(Beamr.guest(), non_neg_integer(), unquote(value), [
            write_option()
          ]) :: :ok
    def unquote(:"#{write}!")(guest, offset, value, opts \\ []) do
      guest |> unquote(write)(offset, value, opts) |> Error.unwrap!()
    end
  end

  defp read_number(ref, type, offset, opts) do
    memory = memory(opts)

    case native(:typed_read, [ref, memory, offset, type]) do
      {:ok, _number} = ok -> ok
      error -> answer(error, memory, offset, @sizes[type])
    end
  end

  defp kind(type, false), do: type
  defp kind(type, true), do: {:wrap, type}

  defp write_number(ref, type, offset, value, opts) do
    {memory, wrap} = write_options(opts)
    kind = kind(type, wrap)

    case native(:typed_write, [ref, memory, offset, kind, value]) do
      :ok -> :ok
      error -> error |> answer(memory, offset, @sizes[type]) |> refused(type, value, nil)
    end
  end

  @doc """
  Reads `count` numbers that lie side by side. A list takes several times the room of the numbers
  themselves; with `as: :binary` they come as they lie, little-endian.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.IO.write_array(wasm, 8, :u16, [1, 2, 3])
      :ok
      iex> Beamr.IO.read_array(wasm, 8, :u16, 3)
      {:ok, [1, 2, 3]}
      iex> Beamr.IO.read_array(wasm, 8, :u16, 3, as: :binary)
      {:ok, <<1, 0, 2, 0, 3, 0>>}
  """
  @spec read_array(Beamr.guest(), non_neg_integer(), type(), non_neg_integer(), [
          option() | {:as, :list | :binary}
        ]) :: {:ok, [value()] | binary()} | {:error, MemoryError.t()}
  def read_array(guest, offset, type, count, opts \\ [])
      when is_guest(guest) and is_natural(offset) and type in @types and is_natural(count) do
    at(guest, :read_array, [offset, type, count, opts], fn ref ->
      {memory, rest} = Keyword.pop(opts, :memory)
      memory = memory_name(memory)
      length = count * @sizes[type]

      case Keyword.validate!(rest, as: :list)[:as] do
        :list ->
          native(:typed_read_array, [ref, memory, offset, type, count])
          |> answer(memory, offset, length)

        :binary ->
          native(:memory_read, [ref, memory, offset, length]) |> answer(memory, offset, length)

        other ->
          raise ArgumentError, ":as must be :list or :binary, given: #{inspect(other)}"
      end
    end)
  end

  @doc "As `read_array/5`, but raises the error."
  @spec read_array!(Beamr.guest(), non_neg_integer(), type(), non_neg_integer(), [
          option() | {:as, :list | :binary}
        ]) :: [value()] | binary()
  def read_array!(guest, offset, type, count, opts \\ []) do
    guest |> read_array(offset, type, count, opts) |> Error.unwrap!()
  end

  @doc """
  Writes numbers side by side: a list of them, or a binary that has them as they are to lie.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.IO.write_array(wasm, 0, :f32, <<0.5::float-little-32, 2::float-little-32>>)
      :ok
      iex> Beamr.IO.read_array(wasm, 0, :f32, 2)
      {:ok, [0.5, 2.0]}
      iex> {:error, error} = Beamr.IO.write_array(wasm, 0, :u8, [254, 255, 256])
      iex> {error.reason, error.given, error.index}
      {:value_out_of_range, 256, 2}

  Raises `ArgumentError` for what is no list of numbers of this kind, and for a binary with part
  of a number.
  """
  @spec write_array(Beamr.guest(), non_neg_integer(), type(), [value()] | binary(), [
          write_option()
        ]) :: :ok | {:error, MemoryError.t()}
  def write_array(guest, offset, type, values, opts \\ [])
      when is_guest(guest) and is_natural(offset) and type in @types and is_iodata(values) do
    at(guest, :write_array, [offset, type, values, opts], fn ref ->
      {memory, wrap} = write_options(opts)
      {kind, size} = {kind(type, wrap), @sizes[type]}

      if is_binary(values) do
        write_packed(ref, memory, offset, type, values)
      else
        case native(:typed_write_array, [ref, memory, offset, kind, values]) do
          :ok ->
            :ok

          :badarg ->
            raise ArgumentError, "not a list of numbers for #{type}: #{inspect(values)}"

          {:error, {:at, index, reason}} ->
            {:error, reason}
            |> answer(memory, offset + index * size, size)
            |> refused(type, Enum.at(values, index), index)

          error ->
            answer(error, memory, offset, length(values) * size)
        end
      end
    end)
  end

  defp write_packed(ref, memory, offset, type, bytes) do
    unless rem(byte_size(bytes), @sizes[type]) == 0 do
      raise ArgumentError, "#{byte_size(bytes)} byte(s) are no whole number of #{type}"
    end

    write_at(ref, memory, offset, bytes, false)
  end

  @doc "As `write_array/5`, but raises the error."
  @spec write_array!(Beamr.guest(), non_neg_integer(), type(), [value()] | binary(), [
          write_option()
        ]) :: :ok
  def write_array!(guest, offset, type, values, opts \\ []) do
    guest |> write_array(offset, type, values, opts) |> Error.unwrap!()
  end

  @doc """
  Reads what lies here and there: a number for each `{offset, type}`, bytes for each
  `{offset, length}`, in the order they are asked for. All are from one moment.

      iex> wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1)
      ...>   (data (i32.const 8) "\\2a\\00\\00\\00wasm"))|)
      iex> Beamr.IO.read_many(wasm, [{8, :i32}, {12, 4}])
      {:ok, [42, "wasm"]}

  An error's `index` says which place it is about. Raises `ArgumentError` for what is no such
  list.
  """
  @spec read_many(Beamr.guest(), [{non_neg_integer(), type() | non_neg_integer()}], [option()]) ::
          {:ok, [value() | binary()]} | {:error, MemoryError.t()}
  def read_many(guest, places, opts \\ []) when is_guest(guest) and is_list(places) do
    at(guest, :read_many, [places, opts], fn ref ->
      memory = memory(opts)

      case native(:typed_read_many, [ref, memory, places]) do
        :badarg ->
          raise ArgumentError,
                "not a list of {offset, type} and {offset, length}: #{inspect(places)}"

        {:error, {:at, index, reason}} ->
          {offset, wanted} = Enum.at(places, index)
          length = if is_integer(wanted), do: wanted, else: @sizes[wanted]
          {:error, reason} |> answer(memory, offset, length) |> refused(nil, nil, index)

        result ->
          answer(result, memory, nil, nil)
      end
    end)
  end

  @doc "As `read_many/3`, but raises the error."
  @spec read_many!(Beamr.guest(), [{non_neg_integer(), type() | non_neg_integer()}], [option()]) ::
          [value() | binary()]
  def read_many!(guest, places, opts \\ []) do
    guest |> read_many(places, opts) |> Error.unwrap!()
  end

  @doc """
  Writes here and there: a number for each `{offset, type, value}`, iodata for each
  `{offset, data}`, in this order; all of it or nothing.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.IO.write_many(wasm, [{8, :i32, 42}, {12, "wasm"}])
      :ok
      iex> {:error, error} = Beamr.IO.write_many(wasm, [{8, :i32, 43}, {65535, "wasm"}])
      iex> {error.reason, error.index}
      {:out_of_bounds, 1}
      iex> Beamr.IO.read_many(wasm, [{8, :i32}, {12, 4}])
      {:ok, [42, "wasm"]}

  Raises `ArgumentError` for what is no such list.
  """
  @spec write_many(
          Beamr.guest(),
          [{non_neg_integer(), type(), value()} | {non_neg_integer(), iodata()}],
          [write_option()]
        ) :: :ok | {:error, MemoryError.t()}
  def write_many(guest, writes, opts \\ []) when is_guest(guest) and is_list(writes) do
    at(guest, :write_many, [writes, opts], fn ref ->
      {memory, wrap} = write_options(opts)

      case native(:typed_write_many, [ref, memory, writes, wrap]) do
        :ok ->
          :ok

        :badarg ->
          raise ArgumentError,
                "not a list of {offset, type, value} and {offset, iodata}: #{inspect(writes)}"

        {:error, {:at, index, reason}} ->
          refused_write(Enum.at(writes, index), index, reason, memory)

        error ->
          answer(error, memory, nil, nil)
      end
    end)
  end

  defp refused_write({offset, type, value}, index, reason, memory) do
    {:error, reason} |> answer(memory, offset, @sizes[type]) |> refused(type, value, index)
  end

  defp refused_write({offset, data}, index, reason, memory) do
    {:error, reason}
    |> answer(memory, offset, :erlang.iolist_size(data))
    |> refused(nil, nil, index)
  end

  @doc "As `write_many/3`, but raises the error."
  @spec write_many!(
          Beamr.guest(),
          [{non_neg_integer(), type(), value()} | {non_neg_integer(), iodata()}],
          [write_option()]
        ) :: :ok
  def write_many!(guest, writes, opts \\ []) do
    guest |> write_many(writes, opts) |> Error.unwrap!()
  end

  @doc """
  Sets `length` bytes at `offset` to `byte`, as the instruction `memory.fill` does.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.IO.fill(wasm, 8, ?x, 3)
      :ok
      iex> Beamr.IO.read(wasm, 7, 5)
      {:ok, <<0, "xxx", 0>>}
  """
  @spec fill(Beamr.guest(), non_neg_integer(), byte(), non_neg_integer(), [option()]) ::
          :ok | {:error, MemoryError.t()}
  def fill(guest, offset, byte, length, opts \\ [])
      when is_guest(guest) and is_natural(offset) and byte in 0..255 and is_natural(length) do
    at(guest, :fill, [offset, byte, length, opts], fn ref ->
      memory = memory(opts)

      native(:block_fill, [ref, memory, offset, byte, length])
      |> answer(memory, offset, length)
    end)
  end

  @doc "As `fill/5`, but raises the error."
  @spec fill!(Beamr.guest(), non_neg_integer(), byte(), non_neg_integer(), [option()]) :: :ok
  def fill!(guest, offset, byte, length, opts \\ []) do
    guest |> fill(offset, byte, length, opts) |> Error.unwrap!()
  end

  @doc """
  Copies `length` bytes from `source` to `destination`, as the instruction `memory.copy` does;
  the two may overlap. A source of `{guest, offset}` is in another guest; on one node the bytes
  go straight from memory to memory, at one moment of both.

  `source_memory:` names the source's memory, where that is not the destination's; in another
  guest it is the default one unless named.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1) (data (i32.const 0) "abcd"))|)
      iex> Beamr.IO.copy(wasm, 2, 0, 4)
      :ok
      iex> Beamr.IO.read(wasm, 0, 6)
      {:ok, "ababcd"}
      iex> other = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.IO.copy(other, 8, {wasm, 2}, 4)
      :ok
      iex> Beamr.IO.read(other, 8, 4)
      {:ok, "abcd"}
  """
  @spec copy(
          Beamr.guest(),
          non_neg_integer(),
          non_neg_integer() | {Beamr.guest(), non_neg_integer()},
          non_neg_integer(),
          [option() | {:source_memory, String.t() | nil}]
        ) :: :ok | {:error, MemoryError.t()}
  def copy(guest, destination, source, length, opts \\ [])

  def copy(guest, destination, source, length, opts)
      when is_guest(guest) and is_natural(destination) and is_natural(source) and
             is_natural(length) do
    at(guest, :copy, [destination, source, length, opts], fn ref ->
      {memory, source_memory} = two_memories(opts, :source_memory)
      copy_at(ref, {memory, destination}, ref, {source_memory || memory, source}, length)
    end)
  end

  def copy(guest, destination, {other, source}, length, opts)
      when is_guest(guest) and is_natural(destination) and is_guest(other) and
             is_natural(source) and is_natural(length) do
    mfa = {__MODULE__, :copy, [guest, destination, {other, source}, length, opts]}
    {memory, source_memory} = two_memories(opts, :source_memory)

    case {Guest.place(guest, mfa), Guest.place(other, mfa)} do
      {{:instance, ref}, {:instance, other}} ->
        copy_at(ref, {memory, destination}, other, {source_memory, source}, length)

      {{:remote, node, guest}, {:remote, node, other}} ->
        args = [guest, destination, {other, source}, length, opts]
        Guest.remote(node, __MODULE__, :copy, args)

      _on_two_nodes ->
        with {:ok, bytes} <- read(other, source, length, memory: source_memory),
             do: write(guest, destination, bytes, memory: memory)
    end
  end

  defp copy_at(ref, {memory, destination}, other, {source_memory, source}, length) do
    native(:block_copy, [ref, memory, destination, {other, source_memory, source}, length])
    |> answer_two({memory, destination}, {source_memory, source}, length)
  end

  @doc "As `copy/5`, but raises the error."
  @spec copy!(
          Beamr.guest(),
          non_neg_integer(),
          non_neg_integer() | {Beamr.guest(), non_neg_integer()},
          non_neg_integer(),
          [option() | {:source_memory, String.t() | nil}]
        ) :: :ok
  def copy!(guest, destination, source, length, opts \\ []) do
    guest |> copy(destination, source, length, opts) |> Error.unwrap!()
  end

  @doc """
  Compares `length` bytes at `offset` with those at `other`, which may be `{guest, offset}` as in
  `copy/5`: by the first byte that differs, `:lt`, `:eq` or `:gt`. `other_memory:` names the
  memory of the latter.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1) (data (i32.const 0) "abcabd"))|)
      iex> Beamr.IO.compare(wasm, 0, 3, 2)
      {:ok, :eq}
      iex> Beamr.IO.compare(wasm, 0, 3, 3)
      {:ok, :lt}
  """
  @spec compare(
          Beamr.guest(),
          non_neg_integer(),
          non_neg_integer() | {Beamr.guest(), non_neg_integer()},
          non_neg_integer(),
          [option() | {:other_memory, String.t() | nil}]
        ) :: {:ok, :lt | :eq | :gt} | {:error, MemoryError.t()}
  def compare(guest, offset, other, length, opts \\ [])

  def compare(guest, offset, other, length, opts)
      when is_guest(guest) and is_natural(offset) and is_natural(other) and is_natural(length) do
    at(guest, :compare, [offset, other, length, opts], fn ref ->
      {memory, other_memory} = two_memories(opts, :other_memory)
      compare_at(ref, {memory, offset}, ref, {other_memory || memory, other}, length)
    end)
  end

  def compare(guest, offset, {other_guest, other}, length, opts)
      when is_guest(guest) and is_natural(offset) and is_guest(other_guest) and
             is_natural(other) and is_natural(length) do
    mfa = {__MODULE__, :compare, [guest, offset, {other_guest, other}, length, opts]}
    {memory, other_memory} = two_memories(opts, :other_memory)

    case {Guest.place(guest, mfa), Guest.place(other_guest, mfa)} do
      {{:instance, ref}, {:instance, other_ref}} ->
        compare_at(ref, {memory, offset}, other_ref, {other_memory, other}, length)

      {{:remote, node, guest}, {:remote, node, other_guest}} ->
        args = [guest, offset, {other_guest, other}, length, opts]
        Guest.remote(node, __MODULE__, :compare, args)

      _on_two_nodes ->
        with {:ok, these} <- read(guest, offset, length, memory: memory),
             {:ok, those} <- read(other_guest, other, length, memory: other_memory),
             do: {:ok, order(these, those)}
    end
  end

  defp compare_at(ref, {memory, offset}, other_ref, {other_memory, other}, length) do
    native(:block_compare, [ref, memory, offset, {other_ref, other_memory, other}, length])
    |> answer_two({memory, offset}, {other_memory, other}, length)
  end

  defp order(same, same), do: :eq
  defp order(these, those), do: if(these < those, do: :lt, else: :gt)

  @doc "As `compare/5`, but raises the error."
  @spec compare!(
          Beamr.guest(),
          non_neg_integer(),
          non_neg_integer() | {Beamr.guest(), non_neg_integer()},
          non_neg_integer(),
          [option() | {:other_memory, String.t() | nil}]
        ) :: :lt | :eq | :gt
  def compare!(guest, offset, other, length, opts \\ []) do
    guest |> compare(offset, other, length, opts) |> Error.unwrap!()
  end

  @doc """
  Looks for `pattern` in the `length` bytes at `offset`, and answers where in memory it begins
  first, or nil. It has to lie inside the range as a whole.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1) (data (i32.const 8) "needle"))|)
      iex> Beamr.IO.find(wasm, 0, 100, "needle")
      {:ok, 8}
      iex> Beamr.IO.find(wasm, 9, 100, "needle")
      {:ok, nil}
  """
  @spec find(Beamr.guest(), non_neg_integer(), non_neg_integer(), binary(), [option()]) ::
          {:ok, non_neg_integer() | nil} | {:error, MemoryError.t()}
  def find(guest, offset, length, pattern, opts \\ [])
      when is_guest(guest) and is_natural(offset) and is_natural(length) and is_binary(pattern) do
    at(guest, :find, [offset, length, pattern, opts], fn ref ->
      memory = memory(opts)

      native(:block_find, [ref, memory, offset, length, pattern])
      |> answer(memory, offset, length)
    end)
  end

  @doc "As `find/5`, but raises the error."
  @spec find!(Beamr.guest(), non_neg_integer(), non_neg_integer(), binary(), [option()]) ::
          non_neg_integer() | nil
  def find!(guest, offset, length, pattern, opts \\ []) do
    guest |> find(offset, length, pattern, opts) |> Error.unwrap!()
  end

  @doc """
  The bytes as text: lowercase pairs of digits with single spaces between them, in one line. With
  `format: :canonical`, lines of 16 bytes with their offset before them and ASCII behind.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1) (data (i32.const 0) "Hello"))|)
      iex> Beamr.IO.hexdump(wasm, 0, 5)
      {:ok, "48 65 6c 6c 6f"}
      iex> Beamr.IO.hexdump(wasm, 0, 5, format: :canonical)
      {:ok, "00000000  48 65 6c 6c 6f                                    |Hello|"}
  """
  @spec hexdump(Beamr.guest(), non_neg_integer(), non_neg_integer(), [
          option() | {:format, :plain | :canonical}
        ]) :: {:ok, String.t()} | {:error, MemoryError.t()}
  def hexdump(guest, offset, length, opts \\ [])
      when is_guest(guest) and is_natural(offset) and is_natural(length) do
    {format, opts} = Keyword.pop(opts, :format, :plain)

    unless format in [:plain, :canonical] do
      raise ArgumentError, ":format must be :plain or :canonical, given: #{inspect(format)}"
    end

    with {:ok, bytes} <- read(guest, offset, length, opts),
         do: {:ok, Hexdump.format(bytes, offset, format)}
  end

  @doc "As `hexdump/4`, but raises the error."
  @spec hexdump!(Beamr.guest(), non_neg_integer(), non_neg_integer(), [
          option() | {:format, :plain | :canonical}
        ]) :: String.t()
  def hexdump!(guest, offset, length, opts \\ []) do
    guest |> hexdump(offset, length, opts) |> Error.unwrap!()
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
    with {:ok, pointer} <- malloc(guest, :erlang.iolist_size(string) + 1) do
      case place_and_write(guest, pointer, string, true, []) do
        :ok -> {:ok, pointer}
        error -> give_up(guest, pointer, error)
      end
    end
  end

  # What `malloc` answered is no memory: there is nothing to free.
  defp give_up(guest, pointer, error) do
    :ok = forget(guest, pointer)
    error
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
  def malloc(guest, length) when is_guest(guest) and is_natural(length) do
    malloc_for(guest, length, self())
  end

  @doc false
  @spec malloc_for(Beamr.guest(), non_neg_integer(), pid()) ::
          {:ok, pos_integer()} | {:error, Exception.t()}
  def malloc_for(guest, length, holder) do
    case Guest.find(guest) do
      {:remote, node, guest} ->
        Guest.remote_for_self(node, __MODULE__, :malloc_for, [guest, length, holder])

      place ->
        with {:ok, pointer} <- call_malloc(guest, length) do
          note(place || Guest.find(guest), pointer, length, holder)
          {:ok, pointer}
        end
    end
  end

  defp call_malloc(guest, length) do
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

  defp note({:instance, ref}, pointer, size, holder) do
    Native.held_note(ref, pointer, size, holder)
  end

  # The server has died meanwhile.
  defp note(nil, _pointer, _size, _holder), do: :ok

  @doc "As `malloc/2`, but raises the error."
  @spec malloc!(Beamr.guest(), non_neg_integer()) :: pos_integer()
  def malloc!(guest, length), do: guest |> malloc(length) |> Error.unwrap!()

  @doc "Calls the guest's own `free` with the pointer."
  @spec free(Beamr.guest(), non_neg_integer()) :: :ok | {:error, Exception.t()}
  def free(guest, pointer) when is_guest(guest) and is_natural(pointer) do
    case Guest.find(guest) do
      {:instance, ref} ->
        # Forgotten first: once it is free, another process may be given the same pointer.
        forgotten = Native.held_forget(ref, pointer)

        case call_free(guest, pointer) do
          :ok -> :ok
          error -> remember(ref, pointer, forgotten, error)
        end

      {:remote, node, guest} ->
        Guest.remote_for_self(node, __MODULE__, :free, [guest, pointer])

      nil ->
        call_free(guest, pointer)
    end
  end

  defp call_free(guest, pointer) do
    with {:ok, _results} <- Guest.call(guest, "free", [pointer], @timeout, :auto, true),
         do: :ok
  end

  defp remember(_ref, _pointer, nil, error), do: error

  defp remember(ref, pointer, {size, holder}, error) do
    Native.held_note(ref, pointer, size, holder)
    error
  end

  @doc false
  @spec forget(Beamr.guest(), non_neg_integer()) :: :ok
  def forget(guest, pointer) do
    case Guest.find(guest) do
      {:instance, ref} -> Native.held_forget(ref, pointer)
      {:remote, node, guest} -> Guest.remote(node, __MODULE__, :forget, [guest, pointer])
      nil -> nil
    end

    :ok
  end

  @doc "As `free/2`, but raises the error."
  @spec free!(Beamr.guest(), non_neg_integer()) :: :ok
  def free!(guest, pointer), do: guest |> free(pointer) |> Error.unwrap!()

  @doc """
  What the host holds in the guest: everything that `malloc/2`, `write_string/2`, `with_string/3`
  and the like have allocated and `free/2` was not called for, by pointer. With each goes the
  process that allocated it, or nil for one of another node.

  Closing an instance, and resetting a server, ends it all. What the guest frees itself stays in
  the list until its room is allocated again.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1)
      ...>   (func (export "malloc") (param i32) (result i32) (i32.const 1024))
      ...>   (func (export "free") (param i32)))|)
      iex> {:ok, 1024} = Beamr.IO.malloc(wasm, 16)
      iex> {:ok, [{1024, 16, pid}]} = Beamr.IO.held(wasm)
      iex> pid == self()
      true
      iex> Beamr.IO.free(wasm, 1024)
      :ok
      iex> Beamr.IO.held(wasm)
      {:ok, []}
  """
  @spec held(Beamr.guest()) ::
          {:ok, [{pos_integer(), non_neg_integer(), pid() | nil}]} | {:error, MemoryError.t()}
  def held(guest) when is_guest(guest) do
    at(guest, :held, [], fn ref -> native(:held_list, [ref]) |> answer(nil, nil, nil) end)
  end

  @doc "As `held/1`, but raises the error."
  @spec held!(Beamr.guest()) :: [{pos_integer(), non_neg_integer(), pid() | nil}]
  def held!(guest), do: guest |> held() |> Error.unwrap!()

  @doc """
  How many allocations `held/1` lists.

      iex> Beamr.IO.held_count(Beamr.instantiate!("(module)"))
      {:ok, 0}
  """
  @spec held_count(Beamr.guest()) :: {:ok, non_neg_integer()} | {:error, MemoryError.t()}
  def held_count(guest) when is_guest(guest) do
    at(guest, :held_count, [], fn ref -> ref |> Native.held_count() |> answer(nil, nil, nil) end)
  end

  @doc "As `held_count/1`, but raises the error."
  @spec held_count!(Beamr.guest()) :: non_neg_integer()
  def held_count!(guest), do: guest |> held_count() |> Error.unwrap!()

  @doc """
  Gives a function the pointer of a string with a NUL behind it (see `write_string/2`), and frees
  that when the function has ended, however it does. Answers what the function returned.

  An error of `free` is answered in its place. If the function raises, throws or exits, so does
  this. Nothing is freed when the process is killed meanwhile; `held/1` lists it then.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1)
      ...>   (func (export "malloc") (param i32) (result i32) (i32.const 1024))
      ...>   (func (export "free") (param i32))
      ...>   (func (export "first") (param i32) (result i32) (i32.load8_u (local.get 0))))|)
      iex> Beamr.IO.with_string(wasm, "A", fn pointer -> Beamr.call!(wasm, "first", [pointer]) end)
      {:ok, [65]}
      iex> Beamr.IO.held_count(wasm)
      {:ok, 0}
  """
  @spec with_string(Beamr.guest(), iodata(), (pos_integer() -> result)) ::
          {:ok, result} | {:error, Exception.t()}
        when result: term()
  def with_string(guest, string, function)
      when is_guest(guest) and is_iodata(string) and is_function(function, 1) do
    with {:ok, pointer} <- write_string(guest, string) do
      lend(pointer, &free(guest, &1), fn -> {:ok, function.(pointer)} end)
    end
  end

  @doc "As `with_string/3`, but raises the error."
  @spec with_string!(Beamr.guest(), iodata(), (pos_integer() -> result)) :: result
        when result: term()
  def with_string!(guest, string, function) do
    guest |> with_string(string, function) |> Error.unwrap!()
  end

  @doc """
  As `with_string/3`, for bytes: they are written as they are, and the function is given their
  pointer and their length. For no bytes there is a pointer too.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1)
      ...>   (func (export "malloc") (param i32) (result i32) (i32.const 1024))
      ...>   (func (export "free") (param i32)))|)
      iex> Beamr.IO.with_bytes(wasm, [1, 2, 3], fn pointer, length -> {pointer, length} end)
      {:ok, {1024, 3}}
  """
  @spec with_bytes(Beamr.guest(), iodata(), (pos_integer(), non_neg_integer() -> result)) ::
          {:ok, result} | {:error, Exception.t()}
        when result: term()
  def with_bytes(guest, bytes, function)
      when is_guest(guest) and is_iodata(bytes) and is_function(function, 2) do
    length = :erlang.iolist_size(bytes)

    with {:ok, pointer} <- malloc(guest, max(length, 1)) do
      case write(guest, pointer, bytes) do
        :ok -> lend(pointer, &free(guest, &1), fn -> {:ok, function.(pointer, length)} end)
        error -> give_up(guest, pointer, error)
      end
    end
  end

  @doc "As `with_bytes/3`, but raises the error."
  @spec with_bytes!(Beamr.guest(), iodata(), (pos_integer(), non_neg_integer() -> result)) ::
          result
        when result: term()
  def with_bytes!(guest, bytes, function) do
    guest |> with_bytes(bytes, function) |> Error.unwrap!()
  end

  @doc """
  As `with_string/3`, for `size` bytes that nothing is written to.

  `allocator:` takes the place of the guest's `malloc` and `free`, see `t:allocator/0`; what it
  allocates is not in `held/1`.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1)
      ...>   (func (export "malloc") (param i32) (result i32) (i32.const 1024))
      ...>   (func (export "free") (param i32))
      ...>   (func (export "answer") (param i32) (i32.store (local.get 0) (i32.const 42))))|)
      iex> Beamr.IO.with_alloc(wasm, 4, fn pointer ->
      ...>   Beamr.call!(wasm, "answer", [pointer])
      ...>   Beamr.IO.read_i32!(wasm, pointer)
      ...> end)
      {:ok, 42}
  """
  @spec with_alloc(
          Beamr.guest(),
          non_neg_integer(),
          [{:allocator, allocator() | nil}],
          (non_neg_integer() -> result)
        ) :: {:ok, result} | {:error, Exception.t()}
        when result: term()
  def with_alloc(guest, size, opts \\ [], function)
      when is_guest(guest) and is_natural(size) and is_list(opts) and is_function(function, 1) do
    {alloc, free} =
      case Keyword.validate!(opts, allocator: nil)[:allocator] do
        nil ->
          {&malloc(guest, &1), &free(guest, &1)}

        {alloc, free} when is_function(alloc, 1) and is_function(free, 1) ->
          {alloc, free}

        other ->
          raise ArgumentError,
                ":allocator must be two functions of one argument, given: #{inspect(other)}"
      end

    with {:ok, pointer} <- alloc.(size) do
      lend(pointer, free, fn -> {:ok, function.(pointer)} end)
    end
  end

  @doc "As `with_alloc/4`, but raises the error."
  @spec with_alloc!(
          Beamr.guest(),
          non_neg_integer(),
          [{:allocator, allocator() | nil}],
          (non_neg_integer() -> result)
        ) :: result
        when result: term()
  def with_alloc!(guest, size, opts \\ [], function) do
    guest |> with_alloc(size, opts, function) |> Error.unwrap!()
  end

  defp lend(pointer, free, function) do
    function.()
  catch
    kind, reason ->
      stacktrace = __STACKTRACE__
      free_quietly(free, pointer)
      :erlang.raise(kind, reason, stacktrace)
  else
    result -> with :ok <- free.(pointer), do: result
  end

  # What the function failed with is what its caller has to hear of.
  defp free_quietly(free, pointer) do
    free.(pointer)
  catch
    _kind, _reason -> :ok
  end

  @doc false
  @spec integer_range(type()) :: {integer(), integer()}
  def integer_range(type), do: Keyword.fetch!(@integers, type)

  defp memory([]), do: nil

  defp memory(opts), do: memory_name(Keyword.validate!(opts, memory: nil)[:memory])

  defp memory_name(name) when is_binary(name) or is_nil(name), do: name

  defp memory_name(other) do
    raise ArgumentError, ":memory must be a string, given: #{inspect(other)}"
  end

  defp write_options([]), do: {nil, false}

  defp write_options(opts) do
    opts = Keyword.validate!(opts, memory: nil, wrap: false)

    unless is_boolean(opts[:wrap]) do
      raise ArgumentError, ":wrap must be a boolean, given: #{inspect(opts[:wrap])}"
    end

    {memory_name(opts[:memory]), opts[:wrap]}
  end

  defp utf8_options(opts) do
    opts = Keyword.validate!(opts, memory: nil, invalid: :replace)

    unless opts[:invalid] in [:replace, :error] do
      raise ArgumentError,
            ":invalid must be :replace or :error, given: #{inspect(opts[:invalid])}"
    end

    {memory_name(opts[:memory]), opts[:invalid] == :replace}
  end

  defp two_memories(opts, other) do
    opts = Keyword.validate!(opts, [{:memory, nil}, {other, nil}])
    {memory_name(opts[:memory]), memory_name(opts[other])}
  end

  defp answer(:ok, _memory, _offset, _length), do: :ok
  defp answer({:ok, _value} = ok, _memory, _offset, _length), do: ok

  defp answer({:error, {:invalid_utf8, at}}, memory, offset, length) do
    error = Error.memory(:invalid_utf8, offset + at, length - at)
    {:error, %{error | memory: memory}}
  end

  defp answer({:error, reason}, memory, offset, length) do
    {:error, %{Error.memory(reason, offset, length) | memory: memory}}
  end

  defp answer_two({:error, {:at, 1, reason}}, _one, {memory, offset}, length) do
    answer({:error, reason}, memory, offset, length)
  end

  defp answer_two(result, {memory, offset}, _other, length) do
    answer(result, memory, offset, length)
  end

  # Adds which value it was to an error about one.
  defp refused({:error, %{reason: :value_out_of_range} = error}, type, value, index) do
    {:error, %{error | type: type, given: value, index: index}}
  end

  defp refused({:error, error}, _type, _value, index), do: {:error, %{error | index: index}}
end
