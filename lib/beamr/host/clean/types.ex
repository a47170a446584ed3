defmodule Beamr.Host.Clean.Types do
  @moduledoc false
  # How Clean's values are passed: strings as pointer and length or as a pointer to both, integers
  # in 64 bits or 32, booleans as 0 and 1. What the hosts of an instance share is its allocator.

  @behaviour Beamr.Host

  alias Beamr.Host.Clean.{Allocator, Text}

  @impl true
  def shared(module, args), do: Allocator.new(module, args)

  @impl true
  def parameter(:string), do: [[:i32, :i32], [:i32]]
  def parameter(:integer), do: [[:i64], [:i32]]
  def parameter(:float), do: [[:f64]]
  def parameter(:boolean), do: [[:i32]]
  # A route's handler: an index, or the name of an export.
  def parameter(:handler), do: [[:i32], [:i32, :i32]]
  def parameter(_type), do: []

  @impl true
  def result(:string), do: [[:i32]]
  def result(:integer), do: [[:i64], [:i32]]
  def result(:float), do: [[:f64]]
  def result(:boolean), do: [[:i32]]
  def result(:order), do: [[:i32]]
  # -1 for none, and for an error.
  def result(:position), do: [[:i32]]
  # An integer of which 0 is a good answer, so that an error is -1.
  def result(:count), do: [[:i64], [:i32]]
  # 0 where all went well and -1 where not, or no result at all.
  def result(:status), do: [[], [:i32]]
  # A piece of memory: its size and alignment.
  def result(:block), do: [[:i32]]
  def result(_type), do: []

  @impl true
  def load(:string, words, wasm, _shared) do
    with {:error, _outside} <- string(Enum.map(words, &u32/1), wasm), do: :error
  end

  def load(:handler, [_pointer, _length] = words, wasm, shared),
    do: load(:string, words, wasm, shared)

  def load(:boolean, [word], _wasm, _shared), do: {:ok, word != 0}
  def load(_type, [value], _wasm, _shared), do: {:ok, value}

  defp string([pointer, length], wasm), do: read(wasm, pointer, length)
  defp string([pointer], wasm), do: read(wasm, pointer)

  @doc "The text at a pointer to a length and bytes; 0 is the empty string."
  @spec read(Beamr.guest(), non_neg_integer()) ::
          {:ok, String.t()} | {:error, Beamr.MemoryError.t()}
  def read(_wasm, 0), do: {:ok, ""}

  def read(wasm, pointer) do
    with {:ok, <<length::little-32>>} <- Beamr.IO.read(wasm, pointer, 4),
         do: read(wasm, pointer + 4, length)
  end

  defp read(_wasm, _pointer, 0), do: {:ok, ""}

  defp read(wasm, pointer, length) do
    with {:ok, bytes} <- Beamr.IO.read(wasm, pointer, length), do: {:ok, Text.valid(bytes)}
  end

  @impl true
  def store(:string, _form, text, wasm, allocator) when is_binary(text) and text != "" do
    text = Text.valid(text)

    with {:ok, pointer} <- Allocator.allocate(allocator, wasm, 4 + byte_size(text), 4),
         :ok <- Beamr.IO.write(wasm, pointer, [<<byte_size(text)::little-32>>, text]) do
      pointer
    else
      _no_room -> 0
    end
  end

  def store(:string, _form, _empty_or_error, _wasm, _allocator), do: 0

  def store(:block, _form, {size, align}, wasm, allocator) do
    case Allocator.allocate(allocator, wasm, size, align) do
      {:ok, pointer} -> pointer
      :error -> 0
    end
  end

  def store(:status, [], _result, _wasm, _allocator), do: nil
  def store(:status, _form, :ok, _wasm, _allocator), do: 0
  def store(:status, _form, :error, _wasm, _allocator), do: -1
  def store(:float, _form, :error, _wasm, _allocator), do: 0.0
  def store(:float, _form, value, _wasm, _allocator), do: value
  def store(:boolean, _form, true, _wasm, _allocator), do: 1
  def store(:boolean, _form, _false_or_error, _wasm, _allocator), do: 0
  def store(:order, form, value, _wasm, _allocator), do: integer(form, value, 0)
  def store(:position, form, value, _wasm, _allocator), do: integer(form, value, -1)
  def store(:count, form, value, _wasm, _allocator), do: integer(form, value, -1)
  def store(:integer, form, value, _wasm, _allocator), do: integer(form, value, 0)

  # What the guest cannot be told is an error.
  defp integer([:i32], n, _error) when is_integer(n) and n in -0x80000000..0x7FFFFFFF, do: n

  defp integer([:i64], n, _error)
       when is_integer(n) and n in -0x8000000000000000..0x7FFFFFFFFFFFFFFF,
       do: n

  defp integer(_form, _value, error), do: error

  defp u32(word), do: Bitwise.band(word, 0xFFFFFFFF)
end
