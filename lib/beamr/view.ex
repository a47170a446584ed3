defmodule Beamr.View do
  @moduledoc """
  A window on a guest's memory: `length` bytes from `pointer` on, reached by offsets from its
  beginning, and nothing outside of it.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> {:ok, view} = Beamr.View.new(wasm, 1024, 16)
      iex> Beamr.View.write_f64(view, 8, 0.5)
      :ok
      iex> Beamr.IO.read_f64(wasm, 1032)
      {:ok, 0.5}
      iex> {:error, error} = Beamr.View.read_i32(view, 14)
      iex> {error.reason, error.offset, error.length, error.size, error.pointer}
      {:out_of_view, 14, 4, 16, 1024}

  A view keeps only the guest, the pointer and the length, and looks for the bytes at each access:
  it stays right when the memory grows, and when a server makes itself a new instance. It is a
  plain term, and needs no closing.

  The functions are those of `Beamr.IO`, with their options but for `memory:`, which the view
  has. What lies outside of the window is `{:error, %Beamr.MemoryError{reason: :out_of_view}}`,
  whose `offset` is the one in the view and whose `size` is the view's, even where there is memory.
  """

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.{Error, MemoryError}

  @enforce_keys [:guest, :pointer, :length, :memory]
  defstruct [:guest, :pointer, :length, :memory]

  @typedoc "A view."
  @type t :: %__MODULE__{
          guest: Beamr.guest(),
          pointer: non_neg_integer(),
          length: non_neg_integer(),
          memory: String.t() | nil
        }

  @typedoc "What is in the window of another view."
  @type place :: non_neg_integer() | {t(), non_neg_integer()}

  @sizes [i8: 1, u8: 1, i16: 2, u16: 2, i32: 4, u32: 4, i64: 8, u64: 8, f32: 4, f64: 8]
  @types Keyword.keys(@sizes)
  @chunk 4096

  defguardp is_natural(n) when is_integer(n) and n >= 0

  @doc """
  Makes a view of `length` bytes at `pointer`, which must be in memory by now. `memory:` names an
  exported memory.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> {:ok, _view} = Beamr.View.new(wasm, 65536, 0)
      iex> {:error, error} = Beamr.View.new(wasm, 65536, 1)
      iex> error.reason
      :out_of_bounds
  """
  @spec new(Beamr.guest(), non_neg_integer(), non_neg_integer(), [{:memory, String.t() | nil}]) ::
          {:ok, t()} | {:error, MemoryError.t()}
  def new(guest, pointer, length, opts \\ [])
      when is_guest(guest) and is_natural(pointer) and is_natural(length) and is_list(opts) do
    memory = Keyword.validate!(opts, memory: nil)[:memory]

    case Beamr.IO.size(guest, opts) do
      {:ok, size} when pointer + length <= size ->
        {:ok, %__MODULE__{guest: guest, pointer: pointer, length: length, memory: memory}}

      {:ok, size} ->
        {:error,
         %MemoryError{
           reason: :out_of_bounds,
           memory: memory,
           offset: pointer,
           length: length,
           size: size
         }}

      error ->
        error
    end
  end

  @doc "As `new/4`, but raises the error."
  @spec new!(Beamr.guest(), non_neg_integer(), non_neg_integer(), [{:memory, String.t() | nil}]) ::
          t()
  def new!(guest, pointer, length, opts \\ []) do
    guest |> new(pointer, length, opts) |> Error.unwrap!()
  end

  @doc "The view's bytes."
  @spec size(t()) :: non_neg_integer()
  def size(%__MODULE__{length: length}), do: length

  @doc "The address of the view's first byte."
  @spec pointer(t()) :: non_neg_integer()
  def pointer(%__MODULE__{pointer: pointer}), do: pointer

  @doc """
  A view of `length` bytes of a view, from `offset` on.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> view = Beamr.View.new!(wasm, 1024, 16)
      iex> {:ok, part} = Beamr.View.sub(view, 4, 8)
      iex> {Beamr.View.pointer(part), Beamr.View.size(part)}
      {1028, 8}
      iex> {:error, %{reason: :out_of_view}} = Beamr.View.sub(view, 9, 8)
  """
  @spec sub(t(), non_neg_integer(), non_neg_integer()) :: {:ok, t()} | {:error, MemoryError.t()}
  def sub(%__MODULE__{} = view, offset, length) when is_natural(offset) and is_natural(length) do
    within(view, offset, length, fn pointer ->
      {:ok, %{view | pointer: pointer, length: length}}
    end)
  end

  @doc "As `sub/3`, but raises the error."
  @spec sub!(t(), non_neg_integer(), non_neg_integer()) :: t()
  def sub!(view, offset, length), do: view |> sub(offset, length) |> Error.unwrap!()

  @doc """
  All bytes of the view.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1) (data (i32.const 8) "wasm"))|)
      iex> wasm |> Beamr.View.new!(8, 4) |> Beamr.View.to_binary()
      {:ok, "wasm"}
  """
  @spec to_binary(t()) :: {:ok, binary()} | {:error, MemoryError.t()}
  def to_binary(%__MODULE__{} = view), do: read(view, 0, view.length)

  @doc "As `to_binary/1`, but raises the error."
  @spec to_binary!(t()) :: binary()
  def to_binary!(view), do: view |> to_binary() |> Error.unwrap!()

  @doc "Reads bytes: see `Beamr.IO.read/4`."
  @spec read(t(), non_neg_integer(), non_neg_integer()) ::
          {:ok, binary()} | {:error, MemoryError.t()}
  def read(%__MODULE__{} = view, offset, length) when is_natural(offset) and is_natural(length) do
    within(view, offset, length, &Beamr.IO.read(view.guest, &1, length, memory(view)))
  end

  @doc "As `read/3`, but raises the error."
  @spec read!(t(), non_neg_integer(), non_neg_integer()) :: binary()
  def read!(view, offset, length), do: view |> read(offset, length) |> Error.unwrap!()

  @doc "Writes bytes: see `Beamr.IO.write/4`."
  @spec write(t(), non_neg_integer(), iodata()) :: :ok | {:error, MemoryError.t()}
  def write(%__MODULE__{} = view, offset, data)
      when is_natural(offset) and (is_binary(data) or is_list(data)) do
    within(view, offset, :erlang.iolist_size(data), fn pointer ->
      Beamr.IO.write(view.guest, pointer, data, memory(view))
    end)
  end

  @doc "As `write/3`, but raises the error."
  @spec write!(t(), non_neg_integer(), iodata()) :: :ok
  def write!(view, offset, data), do: view |> write(offset, data) |> Error.unwrap!()

  for {type, size} <- @sizes do
    read = :"read_#{type}"
    write = :"write_#{type}"

    value = if type in [:f32, :f64], do: quote(do: Beamr.IO.value()), else: quote(do: integer())

    @doc "Reads a number: see `Beamr.IO.#{read}/3`."
    @spec unquote(read)(t(), non_neg_integer()) ::
            {:ok, unquote(value)} | {:error, MemoryError.t()}
    def unquote(read)(%__MODULE__{} = view, offset) when is_natural(offset) do
      if offset + unquote(size) <= view.length,
        do: Beamr.IO.unquote(read)(view.guest, view.pointer + offset, memory(view)),
        else: out_of_view(view, offset, unquote(size))
    end

    @doc "As `#{read}/2`, but raises the error."
    @spec unquote(:"#{read}!")(t(), non_neg_integer()) :: unquote(value)
    def unquote(:"#{read}!")(view, offset), do: view |> unquote(read)(offset) |> Error.unwrap!()

    @doc "Writes a number: see `Beamr.IO.#{write}/4`."
    @spec unquote(write)(t(), non_neg_integer(), unquote(value), [{:wrap, boolean()}]) ::
            :ok | {:error, MemoryError.t()}
    def unquote(write)(%__MODULE__{} = view, offset, value, opts \\ []) when is_natural(offset) do
      if offset + unquote(size) <= view.length,
        do: Beamr.IO.unquote(write)(view.guest, view.pointer + offset, value, memory(view, opts)),
        else: out_of_view(view, offset, unquote(size))
    end

    @doc "As `#{write}/4`, but raises the error."
    @spec unquote(:"#{write}!")(t(), non_neg_integer(), unquote(value), [{:wrap, boolean()}]) ::
            :ok
    def unquote(:"#{write}!")(view, offset, value, opts \\ []) do
      view |> unquote(write)(offset, value, opts) |> Error.unwrap!()
    end
  end

  @doc """
  Reads numbers side by side: see `Beamr.IO.read_array/5`.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> view = Beamr.View.new!(wasm, 1024, 16)
      iex> Beamr.View.write_array(view, 4, :u16, [1, 2, 3])
      :ok
      iex> Beamr.View.read_array(view, 6, :u16, 2)
      {:ok, [2, 3]}
  """
  @spec read_array(t(), non_neg_integer(), Beamr.IO.type(), non_neg_integer(), [
          {:as, :list | :binary}
        ]) :: {:ok, [Beamr.IO.value()] | binary()} | {:error, MemoryError.t()}
  def read_array(%__MODULE__{} = view, offset, type, count, opts \\ [])
      when is_natural(offset) and type in @types and is_natural(count) and is_list(opts) do
    within(view, offset, count * @sizes[type], fn pointer ->
      Beamr.IO.read_array(view.guest, pointer, type, count, memory(view, opts))
    end)
  end

  @doc "As `read_array/5`, but raises the error."
  @spec read_array!(t(), non_neg_integer(), Beamr.IO.type(), non_neg_integer(), [
          {:as, :list | :binary}
        ]) :: [Beamr.IO.value()] | binary()
  def read_array!(view, offset, type, count, opts \\ []) do
    view |> read_array(offset, type, count, opts) |> Error.unwrap!()
  end

  @doc "Writes numbers side by side: see `Beamr.IO.write_array/5`."
  @spec write_array(t(), non_neg_integer(), Beamr.IO.type(), [Beamr.IO.value()] | binary(), [
          {:wrap, boolean()}
        ]) :: :ok | {:error, MemoryError.t()}
  def write_array(view, offset, type, values, opts \\ [])

  def write_array(%__MODULE__{} = view, offset, type, values, opts)
      when is_natural(offset) and type in @types and length(values) >= 0 and is_list(opts) do
    write_array(view, offset, type, values, length(values) * @sizes[type], opts)
  end

  def write_array(%__MODULE__{} = view, offset, type, values, opts)
      when is_natural(offset) and type in @types and is_binary(values) and is_list(opts) do
    write_array(view, offset, type, values, byte_size(values), opts)
  end

  defp write_array(view, offset, type, values, length, opts) do
    within(view, offset, length, fn pointer ->
      Beamr.IO.write_array(view.guest, pointer, type, values, memory(view, opts))
    end)
  end

  @doc "As `write_array/5`, but raises the error."
  @spec write_array!(t(), non_neg_integer(), Beamr.IO.type(), [Beamr.IO.value()] | binary(), [
          {:wrap, boolean()}
        ]) :: :ok
  def write_array!(view, offset, type, values, opts \\ []) do
    view |> write_array(offset, type, values, opts) |> Error.unwrap!()
  end

  @doc """
  Reads the bytes at `offset` up to the first NUL, which is left out. It is looked for in the view
  only: `{:error, %Beamr.MemoryError{reason: :unterminated}}` where there is none.

      iex> wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1) (data (i32.const 8) "wasm\\00"))|)
      iex> wasm |> Beamr.View.new!(8, 5) |> Beamr.View.read_string(1)
      {:ok, "asm"}
      iex> {:error, error} = wasm |> Beamr.View.new!(8, 4) |> Beamr.View.read_string(1)
      iex> error.reason
      :unterminated
  """
  @spec read_string(t(), non_neg_integer()) :: {:ok, binary()} | {:error, MemoryError.t()}
  def read_string(%__MODULE__{} = view, offset) when is_natural(offset) do
    # Most strings are short. One that is not is read again as a whole, so that all of it is from
    # one moment.
    with {:ok, _byte} <- read(view, offset, 1),
         rest = view.length - offset,
         :unterminated <- read_string(view, offset, min(rest, @chunk)),
         :unterminated <- read_string(view, offset, rest) do
      {:error,
       %MemoryError{
         reason: :unterminated,
         memory: view.memory,
         offset: offset,
         size: view.length,
         pointer: view.pointer
       }}
    end
  end

  defp read_string(view, offset, length) do
    with {:ok, bytes} <- read(view, offset, length) do
      case :binary.split(bytes, <<0>>) do
        [string, _rest] -> {:ok, :binary.copy(string)}
        [_bytes] -> :unterminated
      end
    end
  end

  @doc "As `read_string/2`, but raises the error."
  @spec read_string!(t(), non_neg_integer()) :: binary()
  def read_string!(view, offset), do: view |> read_string(offset) |> Error.unwrap!()

  @doc """
  Writes a string and a NUL behind it. A NUL inside the string is written as it is;
  `read_string/2` will stop there.
  """
  @spec write_string(t(), non_neg_integer(), iodata()) :: :ok | {:error, MemoryError.t()}
  def write_string(view, offset, string) when is_binary(string) or is_list(string) do
    write(view, offset, [string, 0])
  end

  @doc "As `write_string/3`, but raises the error."
  @spec write_string!(t(), non_neg_integer(), iodata()) :: :ok
  def write_string!(view, offset, string) do
    view |> write_string(offset, string) |> Error.unwrap!()
  end

  @doc "Reads a string of known length: see `Beamr.IO.read_utf8/4`."
  @spec read_utf8(t(), non_neg_integer(), non_neg_integer(), [{:invalid, :replace | :error}]) ::
          {:ok, String.t()} | {:error, MemoryError.t()}
  def read_utf8(%__MODULE__{} = view, offset, length, opts \\ [])
      when is_natural(offset) and is_natural(length) and is_list(opts) do
    within(view, offset, length, fn pointer ->
      Beamr.IO.read_utf8(view.guest, pointer, length, memory(view, opts))
    end)
  end

  @doc "As `read_utf8/4`, but raises the error."
  @spec read_utf8!(t(), non_neg_integer(), non_neg_integer(), [{:invalid, :replace | :error}]) ::
          String.t()
  def read_utf8!(view, offset, length, opts \\ []) do
    view |> read_utf8(offset, length, opts) |> Error.unwrap!()
  end

  @doc """
  Writes a string with no NUL behind it and answers its bytes: see `Beamr.IO.write_utf8/4`. A
  string that is no UTF-8 needs room for what it becomes.
  """
  @spec write_utf8(t(), non_neg_integer(), String.t(), [{:invalid, :replace | :error}]) ::
          {:ok, non_neg_integer()} | {:error, MemoryError.t()}
  def write_utf8(%__MODULE__{} = view, offset, string, opts \\ [])
      when is_natural(offset) and is_binary(string) and is_list(opts) do
    # A byte that is none becomes one character of three.
    length = if String.valid?(string), do: byte_size(string), else: 3 * byte_size(string)

    within(view, offset, length, fn pointer ->
      Beamr.IO.write_utf8(view.guest, pointer, string, memory(view, opts))
    end)
  end

  @doc "As `write_utf8/4`, but raises the error."
  @spec write_utf8!(t(), non_neg_integer(), String.t(), [{:invalid, :replace | :error}]) ::
          non_neg_integer()
  def write_utf8!(view, offset, string, opts \\ []) do
    view |> write_utf8(offset, string, opts) |> Error.unwrap!()
  end

  @doc """
  Sets `length` bytes at `offset` to `byte`: see `Beamr.IO.fill/5`.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
      iex> view = Beamr.View.new!(wasm, 1024, 4)
      iex> Beamr.View.fill(view, 1, ?x, 2)
      :ok
      iex> Beamr.View.to_binary(view)
      {:ok, <<0, "xx", 0>>}
  """
  @spec fill(t(), non_neg_integer(), byte(), non_neg_integer()) ::
          :ok | {:error, MemoryError.t()}
  def fill(%__MODULE__{} = view, offset, byte, length)
      when is_natural(offset) and byte in 0..255 and is_natural(length) do
    within(view, offset, length, &Beamr.IO.fill(view.guest, &1, byte, length, memory(view)))
  end

  @doc "As `fill/4`, but raises the error."
  @spec fill!(t(), non_neg_integer(), byte(), non_neg_integer()) :: :ok
  def fill!(view, offset, byte, length) do
    view |> fill(offset, byte, length) |> Error.unwrap!()
  end

  @doc """
  Copies `length` bytes from `source` to `destination`, which may overlap. A source of
  `{view, offset}` is in another view, of the same guest or another: see `Beamr.IO.copy/5`.

      iex> wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1) (data (i32.const 8) "abcdef"))|)
      iex> view = Beamr.View.new!(wasm, 8, 6)
      iex> Beamr.View.copy(view, 2, 0, 4)
      :ok
      iex> Beamr.View.to_binary(view)
      {:ok, "ababcd"}
      iex> other = Beamr.View.new!(wasm, 1024, 2)
      iex> Beamr.View.copy(other, 0, {view, 4}, 2)
      :ok
      iex> Beamr.View.to_binary(other)
      {:ok, "cd"}
  """
  @spec copy(t(), non_neg_integer(), place(), non_neg_integer()) ::
          :ok | {:error, MemoryError.t()}
  def copy(view, destination, source, length)

  def copy(%__MODULE__{} = view, destination, source, length) when is_natural(source) do
    copy(view, destination, {view, source}, length)
  end

  def copy(%__MODULE__{} = view, destination, {%__MODULE__{} = other, source}, length)
      when is_natural(destination) and is_natural(source) and is_natural(length) do
    within(view, destination, length, fn to ->
      within(other, source, length, fn from ->
        opts = [memory: view.memory, source_memory: other.memory]
        Beamr.IO.copy(view.guest, to, {other.guest, from}, length, opts)
      end)
    end)
  end

  @doc "As `copy/4`, but raises the error."
  @spec copy!(t(), non_neg_integer(), place(), non_neg_integer()) :: :ok
  def copy!(view, destination, source, length) do
    view |> copy(destination, source, length) |> Error.unwrap!()
  end

  defp within(%{length: size} = view, offset, length, function) do
    if offset + length <= size,
      do: function.(view.pointer + offset),
      else: out_of_view(view, offset, length)
  end

  defp out_of_view(view, offset, length) do
    {:error,
     %MemoryError{
       reason: :out_of_view,
       memory: view.memory,
       offset: offset,
       length: length,
       size: view.length,
       pointer: view.pointer
     }}
  end

  defp memory(%{memory: nil}), do: []
  defp memory(%{memory: memory}), do: [memory: memory]

  defp memory(view, []), do: memory(view)
  defp memory(view, opts), do: Keyword.merge(opts, memory(view))
end
