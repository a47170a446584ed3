defmodule Beamr.Host.Clean.Allocator do
  @moduledoc false
  # Where the host's strings and blocks go in the guest's memory. The state lives as long as the
  # instance does and is shared by all processes that call it, so it is an array of atomics; the
  # rest of it is in the guest, where the guest's own allocator sees it.

  alias Beamr.Instance

  @enforce_keys [:choice, :malloc, :heap_pointer, :page_size, :state]
  defstruct [:choice, :malloc, :heap_pointer, :page_size, :base, :state]

  @type choice ::
          :auto
          | :malloc
          | :heap_ptr
          | :zero_word
          | {:base, pos_integer()}
          | (Instance.t(), non_neg_integer(), pos_integer() -> non_neg_integer())

  @type t :: %__MODULE__{
          choice: choice(),
          malloc: boolean(),
          heap_pointer: boolean(),
          page_size: pos_integer(),
          base: pos_integer(),
          state: :atomics.atomics_ref()
        }

  @base 65_536
  @limit 0x1_0000_0000
  @timeout 5_000

  # The words of the state: the next free byte above the base; the rule that was found for this
  # guest at its first allocation.
  @next 1
  @rule 2
  # What the memory's size was when it was last asked for. It never shrinks.
  @size 3

  @rules [:malloc, :heap_ptr, :zero_word, :base]

  @doc "The allocator of an instance in the making: `args` are those of its Clean hosts."
  @spec new(Beamr.Module.t(), [term()]) :: t()
  def new(module, args) do
    choice = Enum.find_value(args, :auto, &chosen/1)
    exports = Map.new(Beamr.Module.exports(module))
    state = :atomics.new(3, signed: false)
    base = with({:base, base} <- choice, do: base) |> base(exports)
    :atomics.put(state, @next, base)

    %__MODULE__{
      choice: check!(choice),
      malloc: match?(%{"malloc" => {:function, %{params: [:i32], results: [:i32]}}}, exports),
      heap_pointer: match?(%{"__heap_ptr" => {:global, %{type: :i32, mutable: true}}}, exports),
      page_size: page_size(exports),
      base: base,
      state: state
    }
  end

  defp chosen(arg), do: if(Keyword.keyword?(arg), do: arg[:allocator])

  defp check!(choice) when choice in [:auto, :malloc, :heap_ptr, :zero_word], do: choice
  defp check!({:base, base}) when is_integer(base) and base > 0, do: {:base, base}
  defp check!(choice) when is_function(choice, 3), do: choice

  defp check!(choice) do
    raise ArgumentError,
          ":allocator must be :auto, :malloc, :heap_ptr, :zero_word, {:base, address} or a " <>
            "function of the instance, a size and an alignment, given: #{inspect(choice)}"
  end

  defp base(base, _exports) when is_integer(base) and base > 0, do: base
  defp base(_choice, _exports), do: @base

  defp page_size(exports) do
    memory =
      exports["memory"] ||
        Enum.find_value(exports, fn {_, type} ->
          with {:memory, _} <- type, do: type, else: (_ -> nil)
        end)

    case memory do
      {:memory, %{page_size: size}} -> size
      _ -> 65_536
    end
  end

  @doc """
  Room for `size` bytes at a multiple of `align`, a power of two. No two answers overlap, unless
  the guest's own `malloc` makes them.
  """
  @spec allocate(t(), Instance.t(), non_neg_integer(), pos_integer()) ::
          {:ok, pos_integer()} | :error
  def allocate(_allocator, _wasm, size, _align) when size >= @limit, do: :error

  def allocate(%{choice: choice}, wasm, size, align) when is_function(choice, 3) do
    case choice.(wasm, size, align) do
      pointer when is_integer(pointer) and pointer > 0 -> {:ok, pointer}
      _none -> :error
    end
  end

  def allocate(allocator, wasm, size, align) do
    allocate(rule(allocator, wasm), allocator, wasm, size, align)
  end

  # Found once: a rule that changed between two allocations would let them overlap.
  defp rule(%{state: state} = allocator, wasm) do
    case :atomics.get(state, @rule) do
      0 ->
        rule = find(allocator, wasm)
        :atomics.put(state, @rule, 1 + Enum.find_index(@rules, &(&1 == rule)))
        rule

      n ->
        Enum.at(@rules, n - 1)
    end
  end

  defp find(%{choice: {:base, _address}}, _wasm), do: :base
  defp find(%{choice: choice}, _wasm) when choice != :auto, do: choice
  defp find(%{malloc: true}, _wasm), do: :malloc
  defp find(%{heap_pointer: true}, _wasm), do: :heap_ptr

  defp find(_allocator, wasm) do
    # A word of zero, as in old modules, would have address 0 allocated.
    with {:ok, <<word::little-32>>} when word >= 4 <- Beamr.IO.read(wasm, 0, 4),
         {:ok, size} when word < size <- Beamr.IO.size(wasm) do
      :zero_word
    else
      _ -> :base
    end
  end

  defp allocate(:malloc, _allocator, wasm, size, align) do
    with {:ok, pointer} <- malloc(wasm, size) do
      if rem(pointer, align) == 0 do
        {:ok, pointer}
      else
        with {:ok, pointer} <- malloc(wasm, size + align - 1), do: {:ok, up(pointer, align)}
      end
    end
  end

  defp allocate(:heap_ptr, allocator, wasm, size, align) do
    with {:ok, value} <- Instance.get_global(wasm, "__heap_ptr"),
         {:ok, pointer, next} <- bump(u32(value), allocator, wasm, size, align),
         :ok <- Instance.set_global(wasm, "__heap_ptr", next) do
      {:ok, pointer}
    else
      _ -> :error
    end
  end

  defp allocate(:zero_word, allocator, wasm, size, align) do
    with {:ok, <<word::little-32>>} <- Beamr.IO.read(wasm, 0, 4),
         {:ok, pointer, next} <- bump(word, allocator, wasm, size, align),
         :ok <- Beamr.IO.write(wasm, 0, <<next::little-32>>) do
      {:ok, pointer}
    else
      _ -> :error
    end
  end

  defp allocate(:base, %{state: state} = allocator, wasm, size, align) do
    before = :atomics.get(state, @next)

    with {:ok, pointer, next} <- bump(before, allocator, wasm, size, align) do
      case :atomics.compare_exchange(state, @next, before, next) do
        :ok -> {:ok, pointer}
        # Another process was faster.
        _other -> allocate(:base, allocator, wasm, size, align)
      end
    end
  end

  # Not `Beamr.IO.malloc/2`, which keeps a record of what the host holds: these are the guest's.
  defp malloc(wasm, size) do
    case Instance.call(wasm, "malloc", [size], @timeout, :auto, true) do
      {:ok, [pointer]} when pointer > 0 -> {:ok, pointer}
      {:ok, _none} -> :error
      {:error, %Beamr.CallError{reason: :unknown_function}} -> :error
      {:error, exception} -> raise exception
    end
  end

  # The block that begins at the next free byte or soon after it, and what is the next one then.
  defp bump(next, allocator, wasm, size, align) do
    next = if next == 0, do: allocator.base, else: next
    pointer = up(next, align)
    after_it = up(pointer + max(size, 1), 8)

    if after_it < @limit and room?(allocator, wasm, pointer + size),
      do: {:ok, pointer, after_it},
      else: :error
  end

  defp room?(%{state: state} = allocator, wasm, size) do
    size <= :atomics.get(state, @size) or
      case Beamr.IO.size(wasm) do
        {:ok, now} when size <= now -> :atomics.put(state, @size, now) == :ok
        {:ok, 0} -> false
        {:ok, now} -> grow?(wasm, div(size - now + allocator.page_size - 1, allocator.page_size))
        {:error, _closed} -> false
      end
  end

  defp grow?(wasm, pages), do: match?({:ok, _before}, Beamr.IO.grow(wasm, pages))

  defp up(n, align), do: div(n + align - 1, align) * align
  defp u32(word), do: Bitwise.band(word, 0xFFFFFFFF)
end

defmodule Beamr.Host.Clean.Allocator.Choice do
  @moduledoc false
  # A host without functions, whose argument says which allocator the others use.

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types
end
