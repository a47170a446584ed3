defmodule Beamr.Host.Clean.MemoryRuntimeTest do
  use Beamr.CleanCase

  alias Beamr.Host.Clean

  # A guest that has the host allocate: `alloc` blocks, `text` strings of a length.
  defp guest(fields, opts \\ []) do
    {pages, opts} = Keyword.pop(opts, :memory, "4")

    Beamr.instantiate!(
      """
      (module
        (import "memory_runtime" "mem_alloc" (func $alloc (param i32 i32) (result i32)))
        (import "env" "string_concat" (func $concat (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") #{pages})
        #{fields}
        (func (export "alloc") (param i32 i32) (result i32)
          (call $alloc (local.get 0) (local.get 1)))
        (func (export "text") (param i32 i32) (result i32)
          (call $concat (local.get 0) (local.get 1) (i32.const 0) (i32.const 0))))
      """,
      Keyword.put_new(opts, :hosts, Clean.hosts([:strings, :memory_runtime]))
    )
  end

  defp alloc(wasm, size, align \\ 8) do
    [pointer] = Beamr.call!(wasm, "alloc", [size, align], unsigned: true)
    pointer
  end

  defp text(wasm, from, length) do
    [pointer] = Beamr.call!(wasm, "text", [from, length], unsigned: true)
    pointer
  end

  @heap_ptr ~S|(global $heap (export "__heap_ptr") (mut i32) (i32.const 1001))|

  defp malloc(next \\ 2000) do
    """
    (global $next (mut i32) (i32.const #{next}))
    (global (export "calls") (mut i32) (i32.const 0))
    (func (export "malloc") (param $size i32) (result i32)
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get $size))))
    """
  end

  describe "the host allocates" do
    test "with the exported malloc before anything else" do
      wasm = guest(malloc() <> @heap_ptr <> ~S|(data (i32.const 0) "\00\04")|)
      assert alloc(wasm, 10) == 2000
      assert Beamr.Instance.get_global(wasm, "__heap_ptr") == {:ok, 1001}
    end

    test "aligned, whatever malloc answers" do
      wasm = guest(malloc(2001))
      assert pointer = alloc(wasm, 10)
      assert rem(pointer, 8) == 0 and pointer > 2001
      assert rem(text(wasm, 8, 3), 4) == 0
    end

    test "at the exported __heap_ptr, which is read before and written after, rounded up to 8" do
      wasm = guest(@heap_ptr <> ~S|(data (i32.const 0) "\00\04")|)
      assert alloc(wasm, 10) == 1008
      assert Beamr.Instance.get_global(wasm, "__heap_ptr") == {:ok, 1024}
      :ok = Beamr.Instance.set_global(wasm, "__heap_ptr", 5000)
      assert alloc(wasm, 1) == 5000
      assert Beamr.Instance.get_global(wasm, "__heap_ptr") == {:ok, 5008}
      assert Beamr.IO.read(wasm, 0, 4) == {:ok, <<0, 4, 0, 0>>}
    end

    test "not at an immutable __heap_ptr" do
      wasm = guest(~S|(global (export "__heap_ptr") i32 (i32.const 1001))|)
      assert alloc(wasm, 10) == 65_536
    end

    test "at a __heap_ptr of zero from the base on" do
      wasm = guest(~S|(global (export "__heap_ptr") (mut i32) (i32.const 0))|)
      assert alloc(wasm, 10) == 65_536
      assert Beamr.Instance.get_global(wasm, "__heap_ptr") == {:ok, 65_552}
    end

    test "where the word at address 0 says, if it lies in the memory" do
      wasm = guest(~S|(data (i32.const 0) "\01\10")|)
      assert alloc(wasm, 10) == 0x1008
      assert Beamr.IO.read(wasm, 0, 4) == {:ok, <<0x1018::little-32>>}
      assert text(wasm, 8, 3) == 0x1018
    end

    test "from 65,536 on where that word is zero, or leads outside" do
      for fields <- [
            "",
            ~S|(data (i32.const 0) "\00\00\04\00")|,
            ~S|(data (i32.const 0) "hello")|
          ] do
        wasm = guest(fields)
        before = Beamr.IO.read!(wasm, 0, 8)
        assert alloc(wasm, 10) == 65_536
        assert alloc(wasm, 10) == 65_552
        assert Beamr.IO.read!(wasm, 0, 8) == before
      end
    end

    test "by one rule for the whole life of the instance" do
      wasm = guest("")
      assert alloc(wasm, 8) == 65_536
      Beamr.IO.write!(wasm, 0, <<0x2000::little-32>>)
      assert alloc(wasm, 8) == 65_544
    end

    test "for each instance by itself" do
      assert alloc(guest(""), 8) == 65_536
      assert alloc(guest(""), 8) == 65_536
    end

    test "as the user chose" do
      fields = malloc() <> @heap_ptr <> ~S|(data (i32.const 0) "\00\04")|

      for {choice, pointer} <- [
            {:auto, 2000},
            {:malloc, 2000},
            {:heap_ptr, 1008},
            {:zero_word, 1024},
            {{:base, 70_001}, 70_008},
            {fn _wasm, 10, 8 -> 80_000 end, 80_000}
          ] do
        hosts = [Clean.Strings, {Clean.MemoryRuntime, allocator: choice}]
        assert alloc(guest(fields, hosts: hosts), 10) == pointer
      end

      hosts = [Clean.Strings, {Clean.MemoryRuntime, allocator: fn _wasm, _size, _align -> 0 end}]
      assert alloc(guest(fields, hosts: hosts), 10) == 0
    end

    test "not as nobody can choose" do
      for choice <- [:bump, {:base, 0}, fn -> 1 end] do
        assert_raise ArgumentError, ~r/:allocator must be/, fn ->
          guest("", hosts: [Clean.Strings, {Clean.MemoryRuntime, allocator: choice}])
        end
      end
    end

    test "by a rule that the guest does not have nothing at all" do
      for choice <- [:malloc, :heap_ptr] do
        hosts = [Clean.Strings, {Clean.MemoryRuntime, allocator: choice}]
        wasm = guest("", hosts: hosts)
        assert alloc(wasm, 10) == 0
        assert text(wasm, 8, 3) == 0
      end
    end
  end

  describe "memory" do
    test "grows when it must" do
      for {fields, first} <- [
            {"", 65_536},
            {@heap_ptr, 1008},
            {~S|(data (i32.const 0) "\08")|, 8}
          ] do
        wasm = guest(fields, memory: "1")
        assert alloc(wasm, 200_000) == first
        size = Beamr.IO.size!(wasm)
        assert size >= first + 200_000 and size < first + 200_000 + 65_536
      end
    end

    test "that cannot grow is no pointer, an empty string, and no change" do
      for fields <- ["", @heap_ptr, ~S|(data (i32.const 0) "\08")|] do
        wasm = guest(fields, memory: "1 1")
        assert alloc(wasm, 200_000) == 0
        assert alloc(wasm, -1) == 0
        assert text(wasm, 0, 65_000) == 0 or fields != ""
        assert Beamr.IO.size!(wasm) == 65_536
      end

      assert alloc(guest("", max_memory: 262_144), 262_144) == 0
    end

    test "that malloc is out of is no pointer" do
      wasm = guest(~S|(func (export "malloc") (param i32) (result i32) (i32.const 0))|)
      assert alloc(wasm, 10) == 0
      assert text(wasm, 8, 3) == 0
    end

    test "that malloc answers outside of is an empty string" do
      wasm = guest(~S|(func (export "malloc") (param i32) (result i32) (i32.const -8))|)
      assert text(wasm, 8, 3) == 0
    end
  end

  test "a malloc that traps ends the call with its cause" do
    wasm = guest(~S|(func (export "malloc") (param i32) (result i32) unreachable)|)
    assert {:error, error} = Beamr.call(wasm, "alloc", [10, 8])
    assert %Beamr.ImportError{name: "mem_alloc", reason: %Beamr.Trap{}} = error
  end

  test "mem_alloc aligns, and has as many bytes as the larger of its arguments" do
    wasm = guest("")
    alloc(wasm, 1, 1)
    assert rem(alloc(wasm, 1, 64), 64) == 0
    assert rem(alloc(wasm, 1, 3), 8) == 0
    # A type's number and a size.
    pointer = alloc(wasm, 2, 100)
    assert alloc(wasm, 8) >= pointer + 100
  end

  test "mem_alloc of nothing is a block of its own" do
    wasm = guest("")
    assert alloc(wasm, 0) != alloc(wasm, 0)
  end

  test "mem_retain, mem_release and the scopes leave every block in its place" do
    wasm =
      Beamr.instantiate!(
        """
        (module
          (import "memory_runtime" "mem_alloc" (func $alloc (param i32 i32) (result i32)))
          (import "memory_runtime" "mem_retain" (func $retain (param i32)))
          (import "memory_runtime" "mem_release" (func $release (param i32)))
          (import "memory_runtime" "mem_scope_push" (func $push))
          (import "memory_runtime" "mem_scope_pop" (func $pop))
          (memory (export "memory") 4)
          (func (export "f") (result i32 i32 i32)
            (local $outer i32) (local $inner i32)
            (local.set $outer (call $alloc (i32.const 8) (i32.const 8)))
            (call $retain (local.get $outer))
            (call $push)
            (local.set $inner (call $alloc (i32.const 8) (i32.const 8)))
            (call $release (local.get $inner))
            (call $release (i32.const 12345))
            (call $pop)
            (call $pop)
            (local.get $outer) (local.get $inner) (call $alloc (i32.const 8) (i32.const 8))))
        """,
        hosts: Clean.hosts([:memory_runtime])
      )

    assert Beamr.call(wasm, "f", []) == {:ok, [65_536, 65_544, 65_552]}
  end

  test "allocations never overlap" do
    for_random_cases(40, fn ->
      {fields, opts} =
        Enum.random([
          {malloc(), []},
          {@heap_ptr, []},
          {~S|(data (i32.const 0) "\01\10")|, []},
          {"", []},
          {"", [memory: "1"]}
        ])

      wasm = guest(fields, opts)

      blocks =
        for _ <- 1..60 do
          if :rand.uniform(2) == 1 do
            size = random_integer(0, 300)
            {alloc(wasm, size, Enum.random([1, 4, 8, 16, 64])), size}
          else
            length = random_integer(1, 300)
            {text(wasm, 8, length), length + 4}
          end
        end

      assert Enum.all?(blocks, fn {pointer, _size} -> pointer > 0 end)
      size = Beamr.IO.size!(wasm)

      blocks
      |> Enum.sort()
      |> Enum.chunk_every(2, 1)
      |> Enum.each(fn
        [{a, length}, {b, _}] -> assert a + length <= b
        [{a, length}] -> assert a + length <= size
      end)
    end)
  end

  test "allocations of many processes never overlap" do
    wasm = guest("")

    pointers =
      1..200
      |> Task.async_stream(fn _ -> alloc(wasm, 24) end, max_concurrency: 20)
      |> Enum.map(fn {:ok, pointer} -> pointer end)
      |> Enum.sort()

    assert pointers == Enum.map(0..199, &(65_536 + 24 * &1))
  end

  test "allocations beside the instance's own processes never overlap" do
    # As imports of the user's may do, in a process of their own.
    wasm = guest("")
    allocator = Clean.Allocator.new(wasm.module, [])

    pointers =
      1..500
      |> Task.async_stream(fn _ -> Clean.Allocator.allocate(allocator, wasm, 8, 8) end)
      |> Enum.map(fn {:ok, {:ok, pointer}} -> pointer end)

    assert length(Enum.uniq(pointers)) == 500
  end
end
