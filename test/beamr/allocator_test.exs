defmodule Beamr.AllocatorTest do
  use Beamr.Case, async: true

  alias Beamr.{Allocator, AllocatorError, MemoryError}
  alias Beamr.Allocator.{Bump, Stack}

  doctest Beamr.Allocator
  doctest Beamr.Allocator.Bump
  doctest Beamr.Allocator.Stack
  doctest Beamr.Allocator.Guest

  @page 65_536

  defp pages(limits), do: Beamr.instantiate!(~s|(module (memory (export "memory") #{limits}))|)

  # A malloc that aligns to 4, and notes how much it has out: a list of free blocks is beyond it,
  # but no block is handed out twice.
  defp mallocs do
    Beamr.instantiate!("""
    (module (memory (export "memory") 16)
      (global $next (mut i32) (i32.const 1028))
      (global $out (export "out") (mut i32) (i32.const 0))
      (func (export "malloc") (param $size i32) (result i32)
        (if (i32.gt_u (local.get $size) (i32.const 10000)) (then (return (i32.const 0))))
        (global.set $out (i32.add (global.get $out) (i32.const 1)))
        (global.get $next)
        (global.set $next
          (i32.add (global.get $next)
            (i32.and (i32.add (local.get $size) (i32.const 7)) (i32.const -4)))))
      (func (export "free") (param i32)
        (global.set $out (i32.sub (global.get $out) (i32.const 1)))))
    """)
  end

  test "the constants are those of the facts" do
    assert {Allocator.heap_base(), Allocator.stack_size(), Allocator.page_size()} ==
             {0x10000, 0x8000, 0x10000}
  end

  describe "a bump allocator" do
    test "begins at 65,536 and aligns to 8 unless told otherwise" do
      bump = Bump.new!(pages(3))
      assert Allocator.alloc(bump, 1) == {:ok, 65_536}
      assert Allocator.alloc(bump, 3) == {:ok, 65_544}
      assert Allocator.alloc(bump, 1, align: 1) == {:ok, 65_547}
      assert Allocator.alloc(bump, 1, align: 4096) == {:ok, 69_632}
      assert {:ok, %{offset: 69_633}} = Allocator.stats(bump)
    end

    test "begins where it is told to, be it aligned or not" do
      bump = Bump.new!(pages(1), base: 1001)
      assert Allocator.alloc(bump, 2, align: 1) == {:ok, 1001}
      assert Allocator.alloc(bump, 2) == {:ok, 1008}
    end

    test "refuses sizes below 1 and alignments that are no powers of two" do
      bump = Bump.new!(pages(2))

      for size <- [0, -1] do
        assert {:error, %AllocatorError{reason: :size, size: ^size}} = Allocator.alloc(bump, size)
      end

      for align <- [0, -8, 3, 12] do
        assert {:error, %AllocatorError{reason: :alignment, alignment: ^align}} =
                 Allocator.alloc(bump, 8, align: align)
      end

      assert_raise FunctionClauseError, fn -> Allocator.alloc(bump, untyped(1.0)) end
      assert_raise ArgumentError, fn -> Allocator.alloc(bump, 1, align: :page) end
      assert_raise ArgumentError, fn -> Allocator.alloc(bump, 1, unknown: 1) end
      assert {:ok, %{allocated: 0, active: 0, offset: 65_536}} = Allocator.stats(bump)
    end

    test "grows memory by exactly the pages that are missing" do
      wasm = pages("1 10")
      bump = Bump.new!(wasm)
      assert Beamr.IO.pages(wasm) == {:ok, 1}
      assert Allocator.alloc(bump, @page) == {:ok, @page}
      assert Beamr.IO.pages(wasm) == {:ok, 2}
      assert Allocator.alloc(bump, 1) == {:ok, 2 * @page}
      assert Beamr.IO.pages(wasm) == {:ok, 3}
      assert Allocator.alloc(bump, @page - 8) == {:ok, 2 * @page + 8}
      assert Beamr.IO.pages(wasm) == {:ok, 3}
      assert Allocator.alloc(bump, 2 * @page + 1) == {:ok, 3 * @page}
      assert Beamr.IO.pages(wasm) == {:ok, 6}
      assert {:ok, %{growths: 3}} = Allocator.stats(bump)
    end

    test "leaves all as it was where the memory cannot grow" do
      wasm = pages("1 2")
      bump = Bump.new!(wasm)
      {:ok, _} = Allocator.alloc(bump, 100, tag: :kept)
      before = {Allocator.stats(bump), Allocator.allocations(bump), Beamr.IO.size(wasm)}

      for size <- [@page, 2 ** 31, 2 ** 40, 2 ** 70] do
        assert {:error, %MemoryError{reason: :cannot_grow}} = Allocator.alloc(bump, size)
      end

      assert {Allocator.stats(bump), Allocator.allocations(bump), Beamr.IO.size(wasm)} == before
      assert Allocator.alloc(bump, 8) == {:ok, @page + 104}
    end

    test "stops at its limit" do
      bump = Bump.new!(pages(1), base: 8, limit: 40)
      assert Allocator.alloc(bump, 25) == {:ok, 8}

      assert {:error, %AllocatorError{reason: :overflow} = error} = Allocator.alloc(bump, 1)
      assert %{size: 1, needed: 8, available: 7, base: 8} = error
      assert Allocator.alloc(bump, 7, align: 1) == {:ok, 33}
    end

    test "reserves for a string its bytes as UTF-8, aligned to 4, and writes nothing" do
      wasm = pages(2)
      bump = Bump.new!(wasm)
      :ok = Beamr.IO.fill(wasm, @page, 0xAA, 16)
      {:ok, _} = Allocator.alloc(bump, 1)
      assert Allocator.alloc_string(bump, "grün", tag: :word) == {:ok, @page + 4}
      assert {:ok, %{size: 5, tag: :word}} = Allocator.lookup(bump, @page + 4)
      assert Allocator.alloc_string(bump, "") == {:ok, @page + 12}
      assert {:ok, %{size: 1}} = Allocator.lookup(bump, @page + 12)
      assert Beamr.IO.read!(wasm, @page, 16) == :binary.copy(<<0xAA>>, 16)
    end

    test "accepts every pointer that is freed, and does nothing" do
      bump = Bump.new!(pages(2))
      {:ok, pointer} = Allocator.alloc(bump, 8)
      before = Allocator.stats(bump)
      assert Allocator.free(bump, pointer) == :ok
      assert Allocator.free(bump, pointer) == :ok
      assert Allocator.free(bump, 7) == :ok
      assert Allocator.stats(bump) == before
      assert {:ok, [%{pointer: ^pointer}]} = Allocator.allocations(bump)
    end

    test "counts bytes without padding, and the peak without the base" do
      bump = Bump.new!(pages(2))
      {:ok, _} = Allocator.alloc(bump, 1)
      {:ok, _} = Allocator.alloc(bump, 2, align: 16)

      assert Allocator.stats(bump) ==
               {:ok, %{allocated: 3, active: 2, peak: 18, offset: @page + 18, growths: 0}}
    end

    test "begins anew after a reset, statistics and all" do
      wasm = pages(1)
      bump = Bump.new!(wasm)
      fresh = Allocator.stats(bump)
      {:ok, pointer} = Allocator.alloc(bump, 2 * @page)
      assert {:ok, %{growths: 1, peak: 131_072}} = Allocator.stats(bump)
      assert Allocator.reset(bump) == :ok
      assert Allocator.stats(bump) == fresh
      assert Allocator.allocations(bump) == {:ok, []}
      assert Allocator.lookup(bump, pointer) == {:ok, nil}
      assert Allocator.alloc(bump, 8) == {:ok, pointer}
      assert {:ok, %{growths: 0, peak: 8}} = Allocator.stats(bump)
    end

    test "records each allocation with pointer, size, time and tag, in order" do
      bump = Bump.new!(pages(2))
      start = System.system_time(:microsecond)
      for n <- 1..5, do: Allocator.alloc!(bump, n, tag: {:tag, n})
      {:ok, allocations} = Allocator.allocations(bump)
      assert for(a <- allocations, do: {a.size, a.tag}) == for(n <- 1..5, do: {n, {:tag, n}})
      assert for(a <- allocations, do: a.pointer) == for(n <- 0..4, do: @page + 8 * n)
      times = for a <- allocations, do: a.time
      assert Enum.sort(times) == times
      assert hd(times) >= start and List.last(times) <= System.system_time(:microsecond)
      assert Allocator.lookup(bump, @page + 16) == {:ok, Enum.at(allocations, 2)}
      assert Allocator.lookup(bump, @page + 17) == {:ok, nil}
    end

    test "records nothing where it is told so" do
      bump = Bump.new!(pages(2), records: false)
      {:ok, pointer} = Allocator.alloc(bump, 8)
      assert Allocator.allocations(bump) == {:ok, []}
      assert Allocator.lookup(bump, pointer) == {:ok, nil}
      assert {:ok, %{active: 1}} = Allocator.stats(bump)
      assert Allocator.reset(bump) == :ok
    end

    test "in a memory of 64 bits goes above 4 GiB" do
      wasm = Beamr.instantiate!(~s|(module (memory (export "memory") i64 65537 65537))|)
      bump = Bump.new!(wasm, base: 2 ** 32)
      assert Allocator.alloc(bump, @page) == {:ok, 2 ** 32}
      assert {:error, %MemoryError{reason: :cannot_grow}} = Allocator.alloc(bump, 1)
    end
  end

  describe "a stack allocator" do
    test "begins at 65,536 with 32,768 bytes unless told otherwise" do
      stack = Stack.new!(pages(2))

      assert {Stack.capacity(stack), Stack.top(stack), Stack.used(stack)} ==
               {32_768, {:ok, 65_536}, {:ok, 0}}
    end

    test "goes upwards, and back to its marks" do
      stack = Stack.new!(pages(1), base: 1024, size: 512)
      assert Allocator.alloc(stack, 5) == {:ok, 1024}
      assert Stack.mark(stack) == :ok
      assert Allocator.alloc(stack, 5) == {:ok, 1032}
      assert Stack.mark(stack) == :ok
      assert Allocator.alloc(stack, 1, align: 64) == {:ok, 1088}
      assert {Stack.top(stack), Stack.used(stack)} == {{:ok, 1089}, {:ok, 65}}
      assert Stack.pop(stack) == :ok
      assert Stack.top(stack) == {:ok, 1037}
      assert {:ok, [%{pointer: 1024}, %{pointer: 1032}]} = Allocator.allocations(stack)
      assert Stack.pop(stack) == :ok
      assert Stack.top(stack) == {:ok, 1029}
      assert {:error, %AllocatorError{reason: :no_mark}} = Stack.pop(stack)
      assert {:ok, %{active: 1, allocated: 11, peak: 65}} = Allocator.stats(stack)
    end

    test "that overflows says what was needed and what there is, and is as it was" do
      stack = Stack.new!(pages(1), base: 1024, size: 64)
      assert Allocator.alloc(stack, 57) == {:ok, 1024}
      before = Allocator.stats(stack)
      assert {:error, %AllocatorError{reason: :overflow} = error} = Allocator.alloc(stack, 8)
      assert %{size: 8, needed: 15, available: 7, base: 1024} = error

      assert Exception.message(error) ==
               "the region at 1024 has 7 byte(s) left, needed: 15"

      assert Allocator.stats(stack) == before
      assert Allocator.alloc(stack, 7, align: 1) == {:ok, 1081}
      assert {:error, %{needed: 1, available: 0}} = Allocator.alloc(stack, 1, align: 1)
    end

    test "is empty after a reset, and has no marks" do
      stack = Stack.new!(pages(2))
      {:ok, _} = Allocator.alloc(stack, 8)
      :ok = Stack.mark(stack)
      assert Allocator.reset(stack) == :ok
      assert {:error, %AllocatorError{reason: :no_mark}} = Stack.pop(stack)

      assert Allocator.stats(stack) ==
               {:ok, %{allocated: 0, active: 0, peak: 0, offset: 65_536, growths: 0}}
    end

    test "takes back what is freed when all above it is free" do
      stack = Stack.new!(pages(1), base: 1024, size: 512)
      [a, b, c] = for _ <- 1..3, do: Allocator.alloc!(stack, 8)
      assert Allocator.free(stack, b) == :ok
      assert Stack.top(stack) == {:ok, 1048}
      assert Allocator.lookup(stack, b) == {:ok, nil}

      assert {:error, %AllocatorError{reason: :unknown_pointer, pointer: ^b}} =
               Allocator.free(stack, b)

      assert Allocator.free(stack, c) == :ok
      assert Stack.top(stack) == {:ok, 1032}
      assert {:ok, [%{pointer: ^a}]} = Allocator.allocations(stack)
      assert Allocator.free(stack, a) == :ok
      assert Stack.used(stack) == {:ok, 0}
      assert {:error, %AllocatorError{reason: :unknown_pointer}} = Allocator.free(stack, 7)
    end

    test "never goes back to a mark inside of a later allocation" do
      stack = Stack.new!(pages(1), base: 1024, size: 512)
      a = Allocator.alloc!(stack, 100)
      :ok = Stack.mark(stack)
      :ok = Allocator.free(stack, a)
      {:ok, 1024} = Allocator.alloc(stack, 200)
      assert Stack.pop(stack) == :ok
      assert Stack.used(stack) == {:ok, 0}
    end

    test "has memory under the whole of its region" do
      wasm = pages("1 2")
      stack = Stack.new!(wasm)
      assert Beamr.IO.pages(wasm) == {:ok, 2}
      assert {:ok, %{growths: 1}} = Allocator.stats(stack)
      Allocator.close(stack)

      assert {:error, %MemoryError{reason: :cannot_grow}} = Stack.new(wasm, size: 65_537)
      # Its region is free again.
      assert {:ok, stack} = Stack.new(wasm, size: 65_536, grow: false)
      Allocator.close(stack)

      assert {:error, %AllocatorError{reason: :uncovered} = error} =
               Stack.new(wasm, size: 65_537, grow: false)

      assert {error.base, error.needed, error.available} == {65_536, 131_073, 131_072}
    end
  end

  describe "the guest's malloc" do
    test "is what allocates and frees" do
      wasm = mallocs()
      malloc = Allocator.Guest.new!(wasm)
      {:ok, a} = Allocator.alloc(malloc, 16, align: 4, tag: :a)
      {:ok, b} = Allocator.alloc_string(malloc, "grün")
      assert {a, b} == {1028, 1048}

      assert {:ok, [%{pointer: ^a, size: 16, tag: :a}, %{pointer: ^b, size: 5}]} =
               Allocator.allocations(malloc)

      assert Allocator.stats(malloc) ==
               {:ok, %{allocated: 21, active: 2, peak: 21, offset: nil, growths: 0}}

      assert Beamr.Instance.get_global(wasm, "out") == {:ok, 2}
      assert Allocator.free(malloc, a) == :ok
      assert Beamr.Instance.get_global(wasm, "out") == {:ok, 1}
      assert {:ok, %{allocated: 21, active: 1, peak: 21}} = Allocator.stats(malloc)
    end

    test "gives more than it was asked for where it does not align enough" do
      wasm = mallocs()
      malloc = Allocator.Guest.new!(wasm)

      for align <- [8, 16, 256] do
        {:ok, pointer} = Allocator.alloc(malloc, 16, align: align)
        assert rem(pointer, align) == 0
        assert Beamr.Instance.get_global(wasm, "out") == {:ok, 1}
        assert Allocator.free(malloc, pointer) == :ok
        assert Beamr.Instance.get_global(wasm, "out") == {:ok, 0}
      end
    end

    test "is freed of all that is held by a reset" do
      wasm = mallocs()
      malloc = Allocator.Guest.new!(wasm)
      for _ <- 1..5, do: Allocator.alloc!(malloc, 10)
      assert Allocator.reset(malloc) == :ok
      assert Beamr.Instance.get_global(wasm, "out") == {:ok, 0}
      assert {:ok, %{allocated: 0, active: 0, peak: 0}} = Allocator.stats(malloc)
    end

    test "that has no room is an error, and nothing is held" do
      malloc = Allocator.Guest.new!(mallocs())

      assert {:error, %MemoryError{reason: :malloc_failed, length: 10_001}} =
               Allocator.alloc(malloc, 10_001)

      assert {:ok, %{active: 0}} = Allocator.stats(malloc)
      malloc = Allocator.Guest.new!(pages(1))
      assert {:error, %Beamr.CallError{reason: :unknown_function}} = Allocator.alloc(malloc, 1)
    end

    test "does not free what it does not hold" do
      wasm = mallocs()
      malloc = Allocator.Guest.new!(wasm)
      {:ok, pointer} = Beamr.IO.malloc(wasm, 8)

      assert {:error, %AllocatorError{reason: :unknown_pointer, pointer: ^pointer}} =
               Allocator.free(malloc, pointer)

      assert Beamr.Instance.get_global(wasm, "out") == {:ok, 1}
    end
  end

  describe "regions" do
    test "of one memory that overlap are refused, with the other's" do
      wasm = pages(4)
      bump = Bump.new!(wasm, base: 1000, limit: 2000)

      for {base, size} <- [{1000, 1}, {1999, 1}, {500, 501}, {0, 65_536}, {1200, 10}] do
        assert {:error, %AllocatorError{reason: :overlap} = error} =
                 Stack.new(wasm, base: base, size: size)

        assert {error.base, error.limit} == {base, base + size}
        assert error.other == %{kind: :bump, base: 1000, limit: 2000, owner: self()}
      end

      assert {:ok, below} = Stack.new(wasm, base: 900, size: 100)
      assert {:ok, _above} = Bump.new(wasm, base: 2000, limit: 3000)
      assert {:ok, _rest} = Bump.new(wasm, base: 3000)
      assert {:error, %{other: %{limit: :infinity}} = error} = Stack.new(wasm, base: 100_000)

      assert Exception.message(error) ==
               "the region from 100000 to 132767 overlaps that of a bump allocator, from 3000 on, " <>
                 "owned by #{inspect(self())}"

      Allocator.close(bump)
      assert {:ok, _again} = Stack.new(wasm, base: 1000, size: 1000)
      assert {:error, %{other: %{kind: :stack}}} = Bump.new(wasm, base: 0, limit: 901)
      assert Allocator.alloc(below, 96) == {:ok, 904}
    end

    test "that both allocators have by default are not one unnoticed" do
      wasm = pages(2)
      assert {:ok, _stack} = Stack.new(wasm)
      assert {:error, %{reason: :overlap, other: %{kind: :stack}}} = Bump.new(wasm)
      assert {:error, %{reason: :overlap}} = Stack.new(wasm)
      assert {:ok, _bump} = Bump.new(wasm, base: 0x10000 + 0x8000)
    end

    test "of two memories, or of two guests, are others" do
      wasm =
        Beamr.instantiate!(~s|(module (memory (export "memory") 1) (memory (export "other") 1))|)

      assert {:ok, _} = Bump.new(wasm)
      assert {:ok, _} = Bump.new(wasm, memory: "other")
      assert {:error, %{reason: :overlap}} = Bump.new(wasm, memory: "memory")
      assert {:ok, _} = Bump.new(pages(1))
    end

    test "of a default memory of another name may be of any memory" do
      wasm = Beamr.instantiate!(~s|(module (memory (export "mem") 1) (memory (export "b") 1))|)
      assert {:ok, _} = Bump.new(wasm)
      assert {:error, %{reason: :overlap}} = Bump.new(wasm, memory: "mem")
      wasm = Beamr.instantiate!(~s|(module (memory (export "mem") 1) (memory (export "b") 1))|)
      assert {:ok, bump} = Bump.new(wasm, memory: "b")
      assert {:ok, _} = Bump.new(wasm, memory: "mem")
      assert Allocator.alloc(bump, 8) == {:ok, @page}
      assert Beamr.IO.pages(wasm, memory: "b") == {:ok, 2}
      assert Beamr.IO.pages(wasm, memory: "mem") == {:ok, 1}
    end

    test "are those of the instance, by whichever name it goes" do
      name = :"#{__MODULE__}.#{System.unique_integer()}"
      test = self()

      server =
        start_supervised!(
          {Beamr.Server,
           module: ~s|(module (memory (export "memory") 2))|,
           name: name,
           init: fn wasm -> send(test, {:wasm, wasm}) end}
        )

      assert_receive {:wasm, wasm}
      {:ok, bump} = Bump.new(name)
      assert {:error, %{reason: :overlap}} = Bump.new(server)
      assert {:error, %{reason: :overlap}} = Stack.new(wasm)
      assert Allocator.alloc(bump, 8) == {:ok, @page}
    end

    test "are refused in a guest without such a memory" do
      assert {:error, %MemoryError{reason: :unknown_memory}} = Bump.new(pages(1), memory: "no")
      wasm = pages(1)
      Beamr.close(wasm)
      assert {:error, %MemoryError{reason: :closed}} = Bump.new(wasm)
      assert catch_exit(Bump.new(:nobody)) |> elem(0) == :noproc
    end

    test "have options that are checked" do
      wasm = pages(1)
      assert_raise ArgumentError, fn -> Bump.new(wasm, base: -1) end
      assert_raise ArgumentError, fn -> Bump.new(wasm, base: 8, limit: 8) end
      assert_raise ArgumentError, fn -> Bump.new(wasm, records: 1) end
      assert_raise ArgumentError, fn -> Bump.new(wasm, owner: :me) end
      assert_raise ArgumentError, fn -> Bump.new(wasm, size: 1) end
      assert_raise ArgumentError, fn -> Stack.new(wasm, size: 0) end
      assert_raise ArgumentError, fn -> Stack.new(wasm, grow: 1) end
      assert_raise FunctionClauseError, fn -> Bump.new(untyped("wasm")) end
    end
  end

  describe "an allocator ends" do
    test "when it is closed" do
      wasm = pages(2)
      bump = Bump.new!(wasm)
      assert Allocator.close(bump) == :ok
      assert Allocator.close(bump) == :ok

      for function <- [
            &Allocator.alloc(&1, 8),
            &Allocator.reset/1,
            &Allocator.stats/1,
            &Allocator.allocations/1,
            &Allocator.lookup(&1, 8)
          ] do
        assert {:error, %AllocatorError{reason: :closed}} = function.(bump)
      end

      stack = Stack.new!(wasm)
      Allocator.close(stack)

      for function <- [&Stack.mark/1, &Stack.pop/1, &Stack.used/1, &Allocator.free(&1, 8)] do
        assert {:error, %AllocatorError{reason: :closed}} = function.(stack)
      end

      malloc = Allocator.Guest.new!(mallocs())
      Allocator.close(malloc)
      assert {:error, %AllocatorError{reason: :closed}} = Allocator.alloc(malloc, 8)
      assert Beamr.Instance.get_global(malloc.guest, "out") == {:ok, 0}
    end

    test "when its owner ends" do
      wasm = pages(2)
      {:ok, bump} = Task.await(Task.async(fn -> Bump.new(wasm) end))
      eventually(fn -> not Process.alive?(bump.pid) end)
      test = self()
      assert {:ok, kept} = Task.await(Task.async(fn -> Bump.new(wasm, owner: test) end))
      assert {:ok, _} = Allocator.stats(kept)
    end

    test "when its owner ends, so that another can be made at once in its place" do
      wasm = pages(2)
      test = self()

      owner =
        spawn(fn ->
          send(test, Bump.new!(wasm))
          Process.sleep(:infinity)
        end)

      assert_receive %Bump{} = bump
      :sys.suspend(bump.pid)
      kill(owner)
      assert Process.alive?(bump.pid)
      assert {:ok, _} = Bump.new(wasm)
      :sys.resume(bump.pid)
      eventually(fn -> not Process.alive?(bump.pid) end)
    end

    test "when its instance is closed" do
      wasm = pages(2)
      bump = Bump.new!(wasm)
      malloc = Allocator.Guest.new!(wasm)
      assert Beamr.close(wasm) == :ok
      refute Process.alive?(bump.pid)
      refute Process.alive?(malloc.pid)
      assert {:error, %MemoryError{reason: :closed}} = Allocator.alloc(bump, 8)
      assert {:error, %AllocatorError{reason: :closed}} = Allocator.stats(bump)
    end

    test "when the server whose guest it is ends, or makes itself another" do
      wat = ~s|(module (memory (export "memory") 1) (func (export "trap") unreachable))|
      {:ok, server} = start_supervised({Beamr.Server, module: wat, on_trap: :reset})
      bump = Bump.new!(server)
      {:ok, _} = Allocator.alloc(bump, 8)
      {:error, _trap} = Beamr.call(server, "trap", [])
      assert {:error, %AllocatorError{reason: :closed}} = Allocator.alloc(bump, 8)
      assert {:ok, again} = Bump.new(server)
      monitor = Process.monitor(again.pid)
      kill(server)
      assert_receive {:DOWN, ^monitor, :process, _pid, :normal}
      assert catch_exit(Allocator.alloc(again, 8)) |> elem(0) == :noproc
    end

    test "and leaves no region and no process behind" do
      wasm = pages(2)
      for _ <- 1..100, do: Bump.new!(wasm) |> Allocator.close()
      key = Beamr.Allocator.Regions.key(wasm.ref)
      eventually(fn -> :ets.lookup(Beamr.Allocator.Regions, key) == [] end)
    end

    test "and holds no reference of its instance" do
      bump = Bump.new!(pages(2))
      assert {:ok, _} = Allocator.alloc(bump, 8)
      terms = [:sys.get_state(bump.pid), :ets.tab2list(Beamr.Allocator.Regions)]
      refute inspect(terms, limit: :infinity, structs: false) =~ inspect(bump.guest.ref)
    end
  end

  describe "several processes" do
    test "never get allocations that overlap, whatever they do" do
      for_random_cases(20, fn ->
        wasm = pages("1 200")
        bump = Bump.new!(wasm, base: 131_072)
        stack = Stack.new!(wasm, base: 1024, size: 20_000)
        seeds = for _ <- 1..8, do: :rand.uniform(1_000_000)

        allocated =
          seeds
          |> Enum.map(&Task.async(fn -> work(&1, wasm, bump, stack) end))
          |> Task.await_many(30_000)
          |> Enum.concat()

        assert_apart(for {:bump, pointer, size, _} <- allocated, do: {pointer, size})
        assert_apart(for {:stack, pointer, size, _} <- allocated, do: {pointer, size})

        # What each process wrote is still there.
        for {_kind, pointer, size, byte} <- allocated do
          assert Beamr.IO.read!(wasm, pointer, size) == :binary.copy(<<byte>>, size)
        end

        {:ok, stats} = Allocator.stats(bump)
        mine = for {:bump, _, size, _} <- allocated, do: size
        assert {stats.allocated, stats.active} == {Enum.sum(mine), length(mine)}
        # Memory was grown by the pages that were missing, and none more.
        assert Beamr.IO.pages!(wasm) == max(1, div(stats.offset + @page - 1, @page))
        {:ok, records} = Allocator.allocations(bump)

        assert Enum.sort(for r <- records, do: {r.pointer, r.size}) ==
                 Enum.sort(for {:bump, pointer, size, _} <- allocated, do: {pointer, size})
      end)
    end
  end

  # Allocates here and there, and frees some on the stack; answers what is live, each filled with
  # a byte of its own.
  defp work(seed, wasm, bump, stack) do
    :rand.seed(:exsss, seed)

    for n <- 1..60, reduce: [] do
      live ->
        align = 2 ** random_integer(0, 6)

        case :rand.uniform(4) do
          1 ->
            size = random_integer(1, 20_000)
            pointer = Allocator.alloc!(bump, size, align: align, tag: n)
            [mine(wasm, :bump, pointer, size, align) | live]

          2 ->
            case Enum.split_with(live, &(elem(&1, 0) == :stack)) do
              {[{:stack, pointer, size, byte} | rest], others} ->
                # Nobody has written into it meanwhile.
                assert Beamr.IO.read!(wasm, pointer, size) == :binary.copy(<<byte>>, size)
                assert Allocator.free(stack, pointer) == :ok
                rest ++ others

              _ ->
                live
            end

          _ ->
            size = random_integer(1, 200)

            case Allocator.alloc(stack, size, align: align) do
              {:ok, pointer} -> [mine(wasm, :stack, pointer, size, align) | live]
              {:error, %AllocatorError{reason: :overflow}} -> live
            end
        end
    end
  end

  defp mine(wasm, kind, pointer, size, align) do
    assert rem(pointer, align) == 0
    byte = :rand.uniform(255)
    :ok = Beamr.IO.fill(wasm, pointer, byte, size)
    {kind, pointer, size, byte}
  end

  defp assert_apart(ranges) do
    ranges
    |> Enum.sort()
    |> Enum.chunk_every(2, 1, :discard)
    |> Enum.each(fn [{a, size}, {b, _}] -> assert a + size <= b end)
  end

  describe "growing" do
    test "by several processes at once is by what is missing, no more" do
      for_random_cases(20, fn ->
        wasm = pages("1 1000")
        bump = Bump.new!(wasm)
        count = random_integer(2, 16)
        size = random_integer(1, 3 * @page)

        1..count
        |> Enum.map(fn _ -> Task.async(fn -> Allocator.alloc!(bump, size) end) end)
        |> Task.await_many(30_000)
        |> Enum.map(&{&1, size})
        |> assert_apart()

        {:ok, %{offset: offset}} = Allocator.stats(bump)
        assert Beamr.IO.pages!(wasm) == div(offset + @page - 1, @page)
      end)
    end

    test "that fails lets the next one try" do
      wasm = pages("1 3")
      bump = Bump.new!(wasm)

      results =
        for size <- [10 * @page, 100, 10 * @page, 200, 20 * @page] do
          Task.async(fn -> Allocator.alloc(bump, size) end)
        end
        |> Task.await_many()

      assert [{:error, _}, {:ok, _}, {:error, _}, {:ok, _}, {:error, _}] = results
      assert {:ok, %{active: 2, allocated: 300}} = Allocator.stats(bump)
    end

    test "waits for a running guest no longer than to its next import, and so do imports" do
      test = self()

      allocate = fn _wasm ->
        send(test, {:in_import, self()})

        receive do
          {:go_on, bump} -> send(test, {:allocated, Allocator.alloc(bump, 10 * @page)})
        end
      end

      wasm =
        Beamr.instantiate!(
          """
          (module (import "env" "allocate" (func $allocate))
            (memory (export "memory") 1 100)
            (func (export "run")
              (i32.store (i32.const 4) (i32.const 1))
              (loop (br_if 0 (i32.eqz (i32.load (i32.const 0)))))
              (call $allocate)))
          """,
          imports: %{"env" => %{"allocate" => allocate}}
        )

      bump = Bump.new!(wasm)
      call = Task.async(fn -> Beamr.call(wasm, "run", [], timeout: 20_000) end)
      eventually(fn -> Beamr.IO.read_i32(wasm, 4) == {:ok, 1} end)
      other = Task.async(fn -> Allocator.alloc(bump, 20 * @page) end)
      eventually(fn -> :sys.get_state(bump.pid).grower != nil end)

      Beamr.IO.write_i32!(wasm, 0, 1)
      assert_receive {:in_import, pid}
      send(pid, {:go_on, bump})
      assert_receive {:allocated, {:ok, pointer}}, 3_000
      assert Task.await(call) == {:ok, []}
      assert {:ok, another} = Task.await(other)
      assert_apart([{pointer, 10 * @page}, {another, 20 * @page}])
      assert Beamr.IO.pages(wasm) == {:ok, 31}
    end

    test "does not hold up what needs no growth" do
      wasm = Beamr.instantiate!(endless())
      {:ok, 1} = Beamr.IO.grow(wasm, 1)
      bump = Bump.new!(wasm)
      looping = start_endless(wasm)
      grower = Task.async(fn -> Allocator.alloc(bump, 5 * @page) end)
      eventually(fn -> :sys.get_state(bump.pid).grower != nil end)
      assert Allocator.alloc(bump, 8) == {:ok, @page}
      Beamr.interrupt(wasm)
      Task.await(looping)
      assert Task.await(grower) == {:ok, @page + 8}
    end

    test "is done by one process for all that wait for the guest, each for what is then missing" do
      wasm = Beamr.instantiate!(endless())
      bump = Bump.new!(wasm)
      looping = start_endless(wasm)
      growers = for _ <- 1..4, do: Task.async(fn -> Allocator.alloc!(bump, 100) end)
      eventually(fn -> :queue.len(:sys.get_state(bump.pid).waiting) == 3 end)
      Beamr.interrupt(wasm)
      Task.await(looping)
      assert growers |> Task.await_many() |> Enum.sort() == for(n <- 0..3, do: @page + 104 * n)
      assert Beamr.IO.pages(wasm) == {:ok, 2}
      assert {:ok, %{growths: 1}} = Allocator.stats(bump)
    end

    test "is taken over from a process that dies at it" do
      wasm = Beamr.instantiate!(endless())
      bump = Bump.new!(wasm)
      looping = start_endless(wasm)
      grower = spawn(fn -> Allocator.alloc(bump, 5 * @page) end)
      eventually(fn -> :sys.get_state(bump.pid).grower != nil end)
      next = Task.async(fn -> Allocator.alloc(bump, 2 * @page) end)
      eventually(fn -> not :queue.is_empty(:sys.get_state(bump.pid).waiting) end)
      Process.exit(grower, :kill)
      eventually(fn -> :queue.is_empty(:sys.get_state(bump.pid).waiting) end)
      Beamr.interrupt(wasm)
      Task.await(looping)
      assert Task.await(next) == {:ok, @page}
      assert Beamr.IO.pages(wasm) == {:ok, 3}
    end
  end

  describe "any struct with the behaviour" do
    defmodule Fixed do
      @behaviour Beamr.Allocator
      defstruct [:pointer]
      @impl true
      def alloc(%{pointer: pointer}, size, align, tag), do: {:ok, {pointer, size, align, tag}}
      @impl true
      def free(_fixed, _pointer), do: :ok
      @impl true
      def reset(_fixed), do: :ok
      @impl true
      def stats(_fixed), do: {:ok, %{}}
      @impl true
      def allocations(_fixed), do: {:ok, []}
      @impl true
      def lookup(_fixed, _pointer), do: {:ok, nil}
      @impl true
      def close(_fixed), do: :ok
    end

    test "is an allocator" do
      fixed = %Fixed{pointer: 8}
      assert Allocator.alloc(fixed, 4, tag: :t) == {:ok, {8, 4, 8, :t}}
      assert Allocator.alloc_string!(fixed, "é") == {8, 2, 4, nil}
      assert Allocator.free!(fixed, 8) == :ok
      assert Allocator.stats!(fixed) == %{}
    end
  end

  test "the forms with ! answer the value, or raise the error" do
    wasm = pages(2)
    stack = Stack.new!(wasm, base: 0, size: 64)
    assert Allocator.alloc!(stack, 8) == 0
    assert Stack.mark!(stack) == :ok
    assert Stack.pop!(stack) == :ok
    assert {Stack.used!(stack), Stack.top!(stack)} == {8, 8}
    assert %{size: 8} = Allocator.lookup!(stack, 0)
    assert [_] = Allocator.allocations!(stack)
    assert Allocator.reset!(stack) == :ok
    assert_raise AllocatorError, fn -> Stack.pop!(stack) end
    assert_raise AllocatorError, fn -> Allocator.alloc!(stack, 65) end
    assert_raise AllocatorError, fn -> Bump.new!(wasm, base: 0) end
    assert_raise AllocatorError, fn -> Stack.new!(wasm, base: 0) end
    assert %Allocator.Guest{} = Allocator.Guest.new!(wasm)
  end
end
