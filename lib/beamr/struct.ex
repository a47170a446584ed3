defmodule Beamr.Struct do
  @moduledoc ~S"""
  C structs in a guest's memory.

  A layout says which fields there are. It is either a module,

      defmodule Point do
        use Beamr.Struct

        layout do
          field :x, :f64
          field :y, :f64
        end
      end

      {:ok, %Point{x: 1.0}} = Point.read(wasm, pointer)
      :ok = Point.write(wasm, pointer, %Point{x: 2.0, y: 0.5})

  or a term that `new/2` makes, without macros:

      iex> point = Beamr.Struct.new(x: :f64, y: :f64)
      iex> line = Beamr.Struct.new(name: {:string, 8}, from: point, to: point)
      iex> {Beamr.Struct.size(line), Beamr.Struct.alignment(line), Beamr.Struct.offset(line, [:to, :y])}
      {40, 8, 32}
      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> value = %{name: "a", from: %{x: 0.0, y: 0.0}, to: %{x: 3.0, y: 4.0}}
      iex> Beamr.Struct.write(wasm, 64, line, value)
      :ok
      iex> Beamr.Struct.read(wasm, 64, line) == {:ok, value}
      true

  Every function here takes either. A struct is read in one crossing into the guest, and so is an
  array of them; it is written in one, all of it or nothing. The layout of a module is compiled
  to one binary pattern.

  ## Types

  | type | bytes | as a term |
  |---|---|---|
  | `:i8` `:u8` `:i16` `:u16` `:i32` `:u32` `:i64` `:u64` | 1 to 8 | integer in its range |
  | `:f32`, `:f64` | 4, 8 | float (an integer too, when written), `:nan`, `:infinity`, `:neg_infinity` |
  | `:bool` | 1 | `true`, `false`; any byte but 0 is read as `true` |
  | `:ptr` | 4 or 8 | unsigned integer; nil too, when written, for 0 |
  | `{:ptr, type}` | 4 or 8 | the same; with `follow: true` what it points to |
  | `{:ptr, :string}` | 4 or 8 | the same, for a string that a NUL ends |
  | `{:enum, names}`, `{:enum, type, names}` | those of the type, `:i32` unless given | a name; the integer where it has none |
  | `{:string, n}` | n | `char[n]`: a binary of fewer than n bytes, without NULs; NULs behind it |
  | `{:bytes, n}` | n | a binary of n bytes |
  | `{:array, type, n}` | n times those of the type | a list of n values |
  | a layout | its size | the struct in it |
  | `{:struct, fields}`, `{:union, fields}` | what they come to | a map |

  Numbers are little-endian. A `char[n]` without a NUL is read to its end.

  ## Layout

  Fields are where C puts them: each aligned to its type, the whole a multiple of the largest
  alignment. `offset:` puts a field elsewhere; the next one comes after it.

  ## What is written

  `write/5` wants every field, and writes the padding as zeros. `update/5` writes some fields and
  leaves all other bytes as they are, which is safe beside somebody who writes other fields of
  the same struct. Both are one crossing, between two slices of the guest. Fields that overlap,
  as in unions, are all read; of those that share a byte, at most one may be written (the others
  are left out, or nil), and bytes of none are zeros.

  What does not fit is `{:error, %Beamr.StructError{}}`, which says the field, and nothing is
  written. What is outside of memory is `{:error, %Beamr.MemoryError{}}`.
  """

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.{Allocator, CallError, Error, MemoryError, StructError}
  alias Beamr.Struct.Codec

  @enforce_keys [:name, :fields, :size, :alignment, :overlapping, :struct]
  defstruct [:name, :fields, :size, :alignment, :overlapping, :struct, :codec]

  @typedoc "A layout as `new/2` makes it. Its fields are private."
  @type t :: %__MODULE__{}

  @typedoc "A layout: what `new/2` made, or a module that uses `Beamr.Struct`."
  @type layout :: t() | module()

  @typedoc "The type of a field: see the table in the module's text."
  @type type ::
          :i8
          | :u8
          | :i16
          | :u16
          | :i32
          | :u32
          | :i64
          | :u64
          | :f32
          | :f64
          | :bool
          | :ptr
          | {:ptr, type() | :string}
          | {:enum, [{atom(), integer()}] | %{atom() => integer()}}
          | {:enum, atom(), [{atom(), integer()}] | %{atom() => integer()}}
          | {:string, pos_integer()}
          | {:bytes, non_neg_integer()}
          | {:array, type(), non_neg_integer()}
          | {:struct, [field()]}
          | {:union, [field()]}
          | layout()

  @typedoc "A field: its name, its type, and `offset:` for where it is."
  @type field :: {atom(), type()} | {atom(), type(), [offset: non_neg_integer()]}

  @typedoc "A field, or what leads to one inside of others: names, and indices of arrays."
  @type path :: atom() | [atom() | non_neg_integer()]

  @typedoc "`memory:` names an exported memory; `follow: true` reads what pointers point to."
  @type option :: {:memory, String.t() | nil} | {:follow, boolean()}

  ## Layouts

  @doc """
  Makes a layout. Options:

    * `:packed` - `true` for no padding at all, as C's `__attribute__((packed))`;
    * `:union` - `true` to put all fields at offset 0;
    * `:overlap` - `true` to let fields with an `offset:` of their own overlap;
    * `:pointers` - 32 or 64, the bits of a pointer; or a module or an instance, for those of its
      memory. 32 unless given;
    * `:struct` - an Elixir struct to read into, in place of a map.

  Raises `ArgumentError` for what is no layout.

      iex> Beamr.Struct.size(Beamr.Struct.new(tag: :u8, value: :u32))
      8
      iex> Beamr.Struct.size(Beamr.Struct.new([tag: :u8, value: :u32], packed: true))
      5
      iex> Beamr.Struct.size(Beamr.Struct.new([{:tag, :u8}, {:value, :u32, offset: 12}]))
      16
      iex> Beamr.Struct.size(Beamr.Struct.new([word: :u32, bytes: {:array, :u8, 4}], union: true))
      4
  """
  @spec new([field()], keyword()) :: t()
  def new(fields, opts \\ []) when is_list(fields) and is_list(opts) do
    Codec.layout(fields, Keyword.delete(opts, :name))
  end

  @doc "The layout's bytes, padding included: C's `sizeof`."
  @spec size(layout()) :: pos_integer()
  def size(layout), do: get(layout).size

  @doc "The layout's alignment in bytes: C's `_Alignof`."
  @spec alignment(layout()) :: pos_integer()
  def alignment(layout), do: get(layout).alignment

  @doc """
  Where a field begins, in bytes: C's `offsetof`. Raises `Beamr.StructError` for a field that is
  not there.

      iex> segment = Beamr.Struct.new(id: :u8, ends: {:array, {:struct, x: :f32, y: :f32}, 2})
      iex> Beamr.Struct.offset(segment, :ends)
      4
      iex> Beamr.Struct.offset(segment, [:ends, 1, :y])
      16
  """
  @spec offset(layout(), path()) :: non_neg_integer()
  def offset(layout, path) do
    {_type, offset} = layout |> get() |> find(path) |> Error.unwrap!()
    offset
  end

  ## Reading

  @doc """
  Reads the struct at `pointer`.

  With `follow: true`, pointers whose type says what they point to are replaced by it (nil for a
  null pointer), each at the cost of one crossing; pointers found there are not followed further.

      iex> user = Beamr.Struct.new(id: :u32, name: {:ptr, :string})
      iex> wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1)
      ...>   (data (i32.const 8) "\\07\\00\\00\\00\\20\\00\\00\\00") (data (i32.const 32) "Ada\\00"))|)
      iex> Beamr.Struct.read(wasm, 8, user)
      {:ok, %{id: 7, name: 32}}
      iex> Beamr.Struct.read(wasm, 8, user, follow: true)
      {:ok, %{id: 7, name: "Ada"}}
  """
  @spec read(Beamr.guest(), non_neg_integer(), layout(), [option()]) ::
          {:ok, map()} | {:error, Exception.t()}
  def read(guest, pointer, layout, opts \\ [])

  def read(guest, pointer, layout, [])
      when is_guest(guest) and is_integer(pointer) and pointer >= 0 do
    layout = get(layout)

    with {:ok, bytes} <- Beamr.IO.read(guest, pointer, layout.size),
         do: {:ok, Codec.decode_struct(layout, bytes)}
  end

  def read(guest, pointer, layout, opts)
      when is_guest(guest) and is_integer(pointer) and pointer >= 0 and is_list(opts) do
    layout = get(layout)
    {follow, opts} = read_options(opts)

    with {:ok, bytes} <- Beamr.IO.read(guest, pointer, layout.size, opts) do
      followed(guest, {:struct, layout}, Codec.decode({:struct, layout}, bytes), follow, opts)
    end
  end

  @doc "As `read/4`, but raises the error."
  @spec read!(Beamr.guest(), non_neg_integer(), layout(), [option()]) :: map()
  def read!(guest, pointer, layout, opts \\ []) do
    guest |> read(pointer, layout, opts) |> Error.unwrap!()
  end

  @doc """
  Reads `count` structs that follow each other at `pointer`, in one crossing. Options are those
  of `read/4`.

      iex> pair = Beamr.Struct.new(a: :u8, b: :u8)
      iex> wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1)
      ...>   (data (i32.const 8) "\\01\\02\\03\\04"))|)
      iex> Beamr.Struct.read_array(wasm, 8, pair, 2)
      {:ok, [%{a: 1, b: 2}, %{a: 3, b: 4}]}
  """
  @spec read_array(Beamr.guest(), non_neg_integer(), layout(), non_neg_integer(), [option()]) ::
          {:ok, [map()]} | {:error, Exception.t()}
  def read_array(guest, pointer, layout, count, opts \\ [])
      when is_guest(guest) and is_integer(pointer) and pointer >= 0 and is_integer(count) and
             count >= 0 and is_list(opts) do
    layout = get(layout)
    {follow, opts} = read_options(opts)

    with {:ok, bytes} <- Beamr.IO.read(guest, pointer, layout.size * count, opts) do
      values = Codec.decode_all({:struct, layout}, layout.size, bytes)
      followed(guest, {:array, {:struct, layout}, count, layout.size}, values, follow, opts)
    end
  end

  @doc "As `read_array/5`, but raises the error."
  @spec read_array!(Beamr.guest(), non_neg_integer(), layout(), non_neg_integer(), [option()]) ::
          [map()]
  def read_array!(guest, pointer, layout, count, opts \\ []) do
    guest |> read_array(pointer, layout, count, opts) |> Error.unwrap!()
  end

  @doc """
  Reads one field of the struct at `pointer`, and nothing else. Options are those of `read/4`.

      iex> line = Beamr.Struct.new(from: {:struct, x: :i32, y: :i32}, to: {:struct, x: :i32, y: :i32})
      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.Struct.write_field(wasm, 8, line, [:to, :y], -1)
      :ok
      iex> Beamr.Struct.read_field(wasm, 8, line, [:to, :y])
      {:ok, -1}
  """
  @spec read_field(Beamr.guest(), non_neg_integer(), layout(), path(), [option()]) ::
          {:ok, term()} | {:error, Exception.t()}
  def read_field(guest, pointer, layout, path, opts \\ [])
      when is_guest(guest) and is_integer(pointer) and pointer >= 0 and is_list(opts) do
    {follow, opts} = read_options(opts)

    with {:ok, {type, offset}} <- layout |> get() |> find(path),
         {:ok, bytes} <- Beamr.IO.read(guest, pointer + offset, Codec.size(type), opts) do
      followed(guest, type, Codec.decode(type, bytes), follow, opts)
    end
  end

  @doc "As `read_field/5`, but raises the error."
  @spec read_field!(Beamr.guest(), non_neg_integer(), layout(), path(), [option()]) :: term()
  def read_field!(guest, pointer, layout, path, opts \\ []) do
    guest |> read_field(pointer, layout, path, opts) |> Error.unwrap!()
  end

  @doc """
  What the bytes of a struct mean. There must be `size/1` of them.

      iex> Beamr.Struct.decode(Beamr.Struct.new(a: :u8, b: :i16), <<1, 0xFF, 0xFE, 0xFF>>)
      %{a: 1, b: -2}
  """
  @spec decode(layout(), binary()) :: map()
  def decode(layout, bytes) when is_binary(bytes) do
    layout = get(layout)

    if byte_size(bytes) != layout.size do
      raise ArgumentError, "#{layout.size} bytes are wanted, given: #{byte_size(bytes)}"
    end

    Codec.decode({:struct, layout}, bytes)
  end

  ## Writing

  @doc """
  Writes a struct at `pointer`: every field, and zeros for the padding. The value is a map, or
  any Elixir struct with these fields.

      iex> pixel = Beamr.Struct.new(r: :u8, g: :u8, b: :u8)
      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.Struct.write(wasm, 0, pixel, %{r: 1, g: 2, b: 3})
      :ok
      iex> {:error, error} = Beamr.Struct.write(wasm, 0, pixel, %{r: 1, g: 256, b: 3})
      iex> Exception.message(error)
      "the field g must be a u8 (from 0 to 255), given: 256"
  """
  @spec write(Beamr.guest(), non_neg_integer(), layout(), map(), [{:memory, String.t() | nil}]) ::
          :ok | {:error, StructError.t() | MemoryError.t()}
  def write(guest, pointer, layout, value, opts \\ [])
      when is_guest(guest) and is_integer(pointer) and pointer >= 0 and is_map(value) and
             is_list(opts) do
    with {:ok, bytes} <- bytes({:struct, get(layout)}, value, []),
         do: Beamr.IO.write(guest, pointer, bytes, opts)
  end

  @doc "As `write/5`, but raises the error."
  @spec write!(Beamr.guest(), non_neg_integer(), layout(), map(), [{:memory, String.t() | nil}]) ::
          :ok
  def write!(guest, pointer, layout, value, opts \\ []) do
    guest |> write(pointer, layout, value, opts) |> Error.unwrap!()
  end

  @doc """
  Writes structs one after the other from `pointer` on, in one crossing, all of them or none.

      iex> pair = Beamr.Struct.new(a: :u8, b: :u8)
      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.Struct.write_array(wasm, 0, pair, [%{a: 1, b: 2}, %{a: 3, b: 4}])
      :ok
      iex> Beamr.IO.read(wasm, 0, 4)
      {:ok, <<1, 2, 3, 4>>}
  """
  @spec write_array(Beamr.guest(), non_neg_integer(), layout(), [map()], [
          {:memory, String.t() | nil}
        ]) :: :ok | {:error, StructError.t() | MemoryError.t()}
  def write_array(guest, pointer, layout, values, opts \\ [])
      when is_guest(guest) and is_integer(pointer) and pointer >= 0 and length(values) >= 0 and
             is_list(opts) do
    layout = get(layout)
    array = {:array, {:struct, layout}, length(values), layout.size}

    with {:ok, bytes} <- bytes(array, values, []),
         do: Beamr.IO.write(guest, pointer, bytes, opts)
  end

  @doc "As `write_array/5`, but raises the error."
  @spec write_array!(Beamr.guest(), non_neg_integer(), layout(), [map()], [
          {:memory, String.t() | nil}
        ]) :: :ok
  def write_array!(guest, pointer, layout, values, opts \\ []) do
    guest |> write_array(pointer, layout, values, opts) |> Error.unwrap!()
  end

  @doc """
  Writes one field of the struct at `pointer`, and no other byte.
  """
  @spec write_field(Beamr.guest(), non_neg_integer(), layout(), path(), term(), [
          {:memory, String.t() | nil}
        ]) :: :ok | {:error, StructError.t() | MemoryError.t()}
  def write_field(guest, pointer, layout, path, value, opts \\ [])
      when is_guest(guest) and is_integer(pointer) and pointer >= 0 and is_list(opts) do
    with {:ok, {type, offset}} <- layout |> get() |> find(path),
         {:ok, bytes} <- bytes(type, value, path |> List.wrap() |> Enum.reverse()),
         do: Beamr.IO.write(guest, pointer + offset, bytes, opts)
  end

  @doc "As `write_field/6`, but raises the error."
  @spec write_field!(Beamr.guest(), non_neg_integer(), layout(), path(), term(), [
          {:memory, String.t() | nil}
        ]) :: :ok
  def write_field!(guest, pointer, layout, path, value, opts \\ []) do
    guest |> write_field(pointer, layout, path, value, opts) |> Error.unwrap!()
  end

  @doc """
  Writes some fields of the struct at `pointer`, all of them or none, in one crossing; every
  other byte stays as it is.

      iex> point = Beamr.Struct.new(x: :i32, y: :i32, z: :i32)
      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> Beamr.Struct.write!(wasm, 0, point, %{x: 1, y: 2, z: 3})
      iex> Beamr.Struct.update(wasm, 0, point, %{x: 10, z: 30})
      :ok
      iex> Beamr.Struct.read(wasm, 0, point)
      {:ok, %{x: 10, y: 2, z: 30}}
  """
  @spec update(Beamr.guest(), non_neg_integer(), layout(), map(), [{:memory, String.t() | nil}]) ::
          :ok | {:error, StructError.t() | MemoryError.t()}
  def update(guest, pointer, layout, fields, opts \\ [])
      when is_guest(guest) and is_integer(pointer) and pointer >= 0 and is_map(fields) and
             is_list(opts) do
    with {:ok, pieces} <- catching(fn -> Codec.pieces(get(layout), fields) end) do
      places = for {offset, bytes} <- pieces, do: {pointer + offset, bytes}
      Beamr.IO.write_many(guest, places, opts)
    end
  end

  @doc "As `update/5`, but raises the error."
  @spec update!(Beamr.guest(), non_neg_integer(), layout(), map(), [{:memory, String.t() | nil}]) ::
          :ok
  def update!(guest, pointer, layout, fields, opts \\ []) do
    guest |> update(pointer, layout, fields, opts) |> Error.unwrap!()
  end

  @doc """
  The bytes of a struct, as `write/5` writes them.

      iex> Beamr.Struct.encode(Beamr.Struct.new(a: :u8, b: :i16), %{a: 1, b: -2})
      {:ok, <<1, 0, 0xFE, 0xFF>>}
  """
  @spec encode(layout(), map()) :: {:ok, binary()} | {:error, StructError.t()}
  def encode(layout, value) when is_map(value) do
    with {:ok, iodata} <- bytes({:struct, get(layout)}, value, []),
         do: {:ok, :erlang.iolist_to_binary(iodata)}
  end

  @doc "As `encode/2`, but raises the error."
  @spec encode!(layout(), map()) :: binary()
  def encode!(layout, value), do: layout |> encode(value) |> Error.unwrap!()

  ## Calls

  @call_options [:allocator, :memory, :follow, :timeout, :scheduler]

  @doc """
  Calls a function that takes or returns structs by value, as C compilers lay them down for
  WebAssembly; answers the struct that it returns.

  C passes a struct as a pointer to a copy of it, and returns one through a pointer that comes
  before the other arguments: `struct point make(int id, struct point from)` is
  `(i32, i32, i32) -> ()`. An argument `{layout, value}` is written to the guest and its pointer
  given; so is `{:pointer, layout, value}`, for functions that take a pointer in C. A struct of
  one number alone is passed and returned as that number, and so it is here. With nil for the
  layout of the result, the answer is that of `Beamr.call/4`.

  The room is allocated with the guest's `malloc`, in one piece, or with `allocator:` (see
  `Beamr.Allocator`), and given back whatever happens. Other options: those of `read/4`, and
  `timeout:` and `scheduler:` as for `Beamr.call/4`. Fails as these do.

      iex> point = Beamr.Struct.new(x: :f64, y: :f64)
      iex> wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1)
      ...>   (func (export "malloc") (param i32) (result i32) (i32.const 1024))
      ...>   (func (export "free") (param i32))
      ...>   (func (export "make_point") (param $out i32) (param $x f64) (param $y f64)
      ...>     (f64.store (local.get $out) (local.get $x))
      ...>     (f64.store offset=8 (local.get $out) (local.get $y))))|)
      iex> Beamr.Struct.call(wasm, "make_point", [1.5, -2.0], point)
      {:ok, %{x: 1.5, y: -2.0}}
  """
  @spec call(
          Beamr.guest(),
          String.t() | Beamr.funcref(),
          [Beamr.value() | {layout(), map()} | {:pointer, layout(), map()}],
          layout() | nil,
          keyword()
        ) :: {:ok, map() | [Beamr.value()]} | {:error, Exception.t()}
  def call(guest, function, args, layout, opts \\ [])
      when is_guest(guest) and (is_binary(function) or is_reference(function)) and
             length(args) >= 0 and is_list(opts) do
    opts = Keyword.validate!(opts, @call_options)
    result = if layout, do: get(layout)

    with {:ok, blocks} <- catching(fn -> Enum.map(args, &argument/1) end) do
      scalar = result && scalar(result)
      hidden = if result && !scalar, do: [{:block, result.alignment, result.size, nil}], else: []
      {blocks, size} = place(hidden ++ blocks)

      with_room(guest, size, opts, fn base ->
        with :ok <- write_blocks(guest, base, blocks, opts),
             args = for(block <- blocks, do: argument(block, base)),
             {:ok, results} <- run(guest, function, args, opts) do
          returned(guest, base, {function, results}, result, scalar, opts)
        end
      end)
    end
  end

  @doc "As `call/5`, but raises the error."
  @spec call!(
          Beamr.guest(),
          String.t() | Beamr.funcref(),
          [Beamr.value() | {layout(), map()} | {:pointer, layout(), map()}],
          layout() | nil,
          keyword()
        ) :: map() | [Beamr.value()]
  def call!(guest, function, args, layout, opts \\ []) do
    guest |> call(function, args, layout, opts) |> Error.unwrap!()
  end

  defp argument({:pointer, layout, value}) when is_map(value), do: block(get(layout), value)

  defp argument({layout, value} = pair) when is_map(value) do
    if layout?(layout), do: by_value(get(layout), value), else: {:value, pair}
  end

  defp argument(value), do: {:value, value}

  defp by_value(layout, value) do
    case scalar(layout) do
      nil -> block(layout, value)
      type -> {:value, unwrap(type, layout, value)}
    end
  end

  defp block(layout, value) do
    bytes = Codec.encode({:struct, layout}, value, [])
    {:block, layout.alignment, layout.size, bytes}
  end

  # Blocks get offsets from the beginning of the room.
  defp place(blocks) do
    Enum.map_reduce(blocks, 0, fn
      {:block, alignment, size, bytes}, top ->
        offset = Codec.align(top, alignment)
        {{:block, offset, bytes}, offset + size}

      value, top ->
        {value, top}
    end)
  end

  defp argument({:block, offset, _bytes}, base), do: base + offset
  defp argument({:value, value}, _base), do: value

  # malloc aligns to 8 or 16, which is as much as any layout wants.
  @room_alignment 8

  defp with_room(_guest, 0, _opts, function), do: function.(nil)

  defp with_room(guest, size, opts, function) do
    {allocate, free} =
      case opts[:allocator] do
        nil ->
          {fn -> Beamr.IO.malloc(guest, size) end, &Beamr.IO.free(guest, &1)}

        allocator ->
          alloc = [align: @room_alignment, tag: :struct_call]
          {fn -> Allocator.alloc(allocator, size, alloc) end, &Allocator.free(allocator, &1)}
      end

    with {:ok, base} <- allocate.() do
      try do
        function.(base)
      after
        free.(base)
      end
    end
  end

  defp write_blocks(guest, base, blocks, opts) do
    {iodata, _end} =
      Enum.map_reduce(
        for({:block, at, bytes} when bytes != nil <- blocks, do: {at, bytes}),
        nil,
        fn
          {at, bytes}, nil -> {{at, bytes}, at + :erlang.iolist_size(bytes)}
          {at, bytes}, top -> {[zeros(at - top) | bytes], at + :erlang.iolist_size(bytes)}
        end
      )

    case iodata do
      [] -> :ok
      [{at, first} | rest] -> Beamr.IO.write(guest, base + at, [first | rest], memory(opts))
    end
  end

  defp zeros(n), do: :binary.copy(<<0>>, n)

  defp run(guest, function, args, opts) do
    opts = opts |> Keyword.take([:timeout, :scheduler]) |> Keyword.put(:unsigned, false)
    Beamr.call(guest, function, args, opts)
  end

  defp memory(opts), do: Keyword.take(opts, [:memory])

  defp returned(_guest, _base, {_function, results}, nil, _scalar, _opts), do: {:ok, results}

  defp returned(guest, base, {_function, []}, result, nil, opts) do
    read(guest, base, result, Keyword.take(opts, [:memory, :follow]))
  end

  defp returned(guest, _base, {_function, [number]}, result, scalar, opts) when scalar != nil do
    {follow, opts} = opts |> Keyword.take([:memory, :follow]) |> read_options()
    bytes = number_bytes(scalar, number)
    followed(guest, {:struct, result}, Codec.decode({:struct, result}, bytes), follow, opts)
  end

  defp returned(_guest, _base, {function, results}, _result, _scalar, _opts) do
    {:error, %CallError{reason: :result, function: function, given: results}}
  end

  # The type of the number that a layout consists of, or nil.
  defp scalar(%{fields: [%{type: type, size: size}], size: size}), do: scalar_type(type)
  defp scalar(_layout), do: nil

  defp scalar_type({:struct, layout}), do: scalar(layout)
  defp scalar_type({:array, type, 1, _size}), do: scalar_type(type)
  defp scalar_type({:enum, type, _, _}), do: type
  defp scalar_type({:ptr, 32, _target}), do: :u32
  defp scalar_type({:ptr, 64, _target}), do: :u64
  defp scalar_type(:bool), do: :u8
  defp scalar_type(type) when is_atom(type), do: type
  defp scalar_type(_other), do: nil

  defp unwrap(type, layout, value) do
    bytes = :erlang.iolist_to_binary(Codec.encode({:struct, layout}, value, []))
    Codec.decode(type, bytes)
  end

  defp number_bytes(type, number) when is_integer(number) do
    bits = 8 * Codec.size(type)
    <<number::little-size(bits)>>
  end

  defp number_bytes(type, number), do: Codec.encode(type, number, [])

  ## Common parts

  defp get(%__MODULE__{} = layout), do: layout

  defp get(module) when is_atom(module) do
    Codec.module_layout(module) ||
      raise ArgumentError, "not a layout: #{inspect(module)}"
  end

  defp layout?(%__MODULE__{}), do: true
  defp layout?(module) when is_atom(module), do: Codec.module_layout(module) != nil
  defp layout?(_other), do: false

  defp find(layout, path) when is_atom(path) or length(path) >= 0 do
    case Codec.find(layout, List.wrap(path)) do
      {:ok, found} -> {:ok, found}
      :error -> {:error, %StructError{reason: :unknown_field, field: List.wrap(path)}}
    end
  end

  defp bytes(type, value, path), do: catching(fn -> Codec.encode(type, value, path) end)

  defp catching(function) do
    {:ok, function.()}
  catch
    %StructError{} = error -> {:error, error}
  end

  defp read_options(opts) do
    {follow, opts} = Keyword.pop(opts, :follow, false)

    unless is_boolean(follow) do
      raise ArgumentError, ":follow must be true or false, given: #{inspect(follow)}"
    end

    {follow, opts}
  end

  defp followed(_guest, _type, value, false, _opts), do: {:ok, value}

  defp followed(guest, type, value, true, opts) do
    {:ok, follow(guest, type, value, opts)}
  catch
    {:unreadable, error} -> {:error, error}
  end

  defp follow(guest, {:struct, layout}, value, opts) do
    Enum.reduce(layout.fields, value, fn field, value ->
      %{value | field.name => follow(guest, field.type, Map.fetch!(value, field.name), opts)}
    end)
  end

  defp follow(guest, {:array, type, _n, _size}, values, opts) do
    Enum.map(values, &follow(guest, type, &1, opts))
  end

  defp follow(_guest, {:ptr, _bits, target}, 0, _opts) when target != nil, do: nil

  defp follow(guest, {:ptr, _bits, {:string, _pointers}}, pointer, opts) do
    guest |> Beamr.IO.read_string(pointer, 4096, opts) |> readable()
  end

  defp follow(guest, {:ptr, _bits, {target, pointers}}, pointer, opts) do
    type = Codec.resolve(target, pointers)
    bytes = guest |> Beamr.IO.read(pointer, Codec.size(type), opts) |> readable()
    Codec.decode(type, bytes)
  end

  defp follow(_guest, _type, value, _opts), do: value

  defp readable({:ok, value}), do: value
  defp readable({:error, error}), do: throw({:unreadable, error})

  ## The macros

  @doc """
  Lets a module say its `layout/2`.

  The module gets `size/0`, `alignment/0`, `offset/1`, `layout/0`, and without their argument for
  the layout the functions `read`, `write`, `update`, `read_array`, `write_array`, `read_field`,
  `write_field`, `decode` and `encode` of `Beamr.Struct`, with those that have a `!`.
  """
  defmacro __using__(_opts) do
    quote do
      import Beamr.Struct, only: [layout: 1, layout: 2]
    end
  end

  @doc """
  Says the fields of the module's struct, with `field/3` in the block, and makes the module an
  Elixir struct with the same fields, all zero. Options are those of `new/2`, but for `struct:`:
  with `struct: false` the module is no Elixir struct, and maps are read.
  """
  defmacro layout(opts \\ [], do: block) do
    opening =
      quote do
        Module.register_attribute(__MODULE__, :beamr_fields, accumulate: true)
        import Beamr.Struct, only: [field: 2, field: 3]
        unquote(block)

        @beamr_layout Beamr.Struct.__layout__(
                        __MODULE__,
                        Enum.reverse(@beamr_fields),
                        unquote(opts)
                      )
      end

    functions =
      quote unquote: false do
        if @beamr_layout.struct do
          defstruct for field <- @beamr_layout.fields,
                        do: {field.name, Beamr.Struct.Codec.zero(field, @beamr_layout)}

          @typedoc "The struct."
          @type t :: %__MODULE__{}
        else
          @typedoc "The struct, as a map."
          @type t :: map()
        end

        @doc "The layout, as `Beamr.Struct` takes it."
        @spec layout() :: Beamr.Struct.t()
        def layout, do: unquote(Macro.escape(@beamr_layout))

        @doc false
        def __beamr_layout__, do: unquote(Macro.escape(@beamr_layout))

        for {segments, value} <- Beamr.Struct.Compiler.decode(@beamr_layout) do
          @doc false
          def __decode__(<<unquote_splicing(segments)>>), do: unquote(value)
        end

        for {segments, value} <- Beamr.Struct.Compiler.decode(@beamr_layout) do
          @doc false
          def __decode_all__(<<unquote_splicing(segments), rest::binary>>) do
            [unquote(value) | __decode_all__(rest)]
          end
        end

        def __decode_all__(""), do: []

        @beamr_path Macro.unique_var(:path, __MODULE__)

        with {value, guard, bytes} <- Beamr.Struct.Compiler.encode(@beamr_layout, @beamr_path) do
          @doc false
          def __encode__(unquote(value), unquote(@beamr_path)) when unquote(guard) do
            _ = unquote(@beamr_path)
            unquote(bytes)
          end
        end

        @doc false
        def __encode__(value, path) do
          Beamr.Struct.Codec.encode_fields(__beamr_layout__(), value, path)
        end
      end

    [opening, functions, delegates()]
  end

  defp delegates do
    quote do
      @doc "The struct's bytes."
      @spec size() :: pos_integer()
      def size, do: unquote(__MODULE__).size(__MODULE__)

      @doc "The struct's alignment in bytes."
      @spec alignment() :: pos_integer()
      def alignment, do: unquote(__MODULE__).alignment(__MODULE__)

      @doc "Where a field begins: see `Beamr.Struct.offset/2`."
      @spec offset(Beamr.Struct.path()) :: non_neg_integer()
      def offset(path), do: unquote(__MODULE__).offset(__MODULE__, path)

      @doc "See `Beamr.Struct.decode/2`."
      @spec decode(binary()) :: t()
      def decode(bytes), do: unquote(__MODULE__).decode(__MODULE__, bytes)

      @doc "See `Beamr.Struct.encode/2`."
      @spec encode(map()) :: {:ok, binary()} | {:error, Beamr.StructError.t()}
      def encode(value), do: unquote(__MODULE__).encode(__MODULE__, value)

      @doc "See `Beamr.Struct.encode/2`."
      @spec encode!(map()) :: binary()
      def encode!(value), do: unquote(__MODULE__).encode!(__MODULE__, value)

      unquote(
        for {name, args, result} <- [
              {:read, [], quote(do: t())},
              {:read_array, [count: quote(do: non_neg_integer())], quote(do: [t()])},
              {:read_field, [path: quote(do: Beamr.Struct.path())], quote(do: term())},
              {:write, [value: quote(do: map())], nil},
              {:write_array, [values: quote(do: [map()])], nil},
              {:write_field, [path: quote(do: Beamr.Struct.path()), value: quote(do: term())],
               nil},
              {:update, [fields: quote(do: map())], nil}
            ] do
          delegate(name, args, result)
        end
      )
    end
  end

  defp delegate(name, args, result) do
    types = Keyword.values(args)
    vars = for {arg, _type} <- args, do: Macro.var(arg, __MODULE__)
    bang = :"#{name}!"
    doc = "See `Beamr.Struct.#{name}/#{length(args) + 4}`."

    {answer, value} =
      if result,
        do: {quote(do: {:ok, unquote(result)} | {:error, Exception.t()}), result},
        else: {quote(do: :ok | {:error, Exception.t()}), :ok}

    for {function, answer} <- [{name, answer}, {bang, value}] do
      quote do
        @doc unquote(doc)
        @spec unquote(function)(
                Beamr.guest(),
                non_neg_integer(),
                unquote_splicing(types),
                keyword()
              ) :: unquote(answer)
        def unquote(function)(guest, pointer, unquote_splicing(vars), opts \\ []) do
          unquote(__MODULE__).unquote(function)(
            guest,
            pointer,
            __beamr_layout__(),
            unquote_splicing(vars),
            opts
          )
        end
      end
    end
  end

  @doc "Says a field in a `layout/2`: its name, its type, and `offset:` to put it elsewhere."
  defmacro field(name, type, opts \\ []) do
    quote do
      @beamr_fields {unquote(name), unquote(type), unquote(opts)}
    end
  end

  @doc false
  @spec __layout__(module(), [field()], keyword()) :: t()
  def __layout__(module, fields, opts) do
    {struct?, opts} = Keyword.pop(opts, :struct, true)

    unless is_boolean(struct?) do
      raise ArgumentError, ":struct must be true or false in a layout, given: #{inspect(struct?)}"
    end

    struct = if struct?, do: module
    %{Codec.layout(fields, [name: module, struct: struct] ++ opts) | codec: module}
  end

  defimpl Inspect do
    def inspect(layout, _opts) do
      name = if layout.name, do: Kernel.inspect(layout.name), else: "unnamed"
      "#Beamr.Struct<#{name}, #{layout.size} bytes>"
    end
  end
end
