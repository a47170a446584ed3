defmodule Beamr.CompactTest do
  # Where memories lie: those that are compact, and what all of them leave behind for the next.
  use ExUnit.Case, async: true

  alias Beamr.{IO, View}

  @page 65_536

  # Reads and writes bytes, and grows, from inside; `grow_then_load` holds the address across the
  # growth.
  @guest """
  (module
    (import "host" "call" (func $host))
    (memory (export "memory") 1 200)
    (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0)))
    (func (export "load64") (param i32) (result i64) (i64.load (local.get 0)))
    (func (export "far") (param i32) (result i32) (i32.load8_u offset=4294967295 (local.get 0)))
    (func (export "store") (param i32 i32) (i32.store8 (local.get 0) (local.get 1)))
    (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
    (func (export "size") (result i32) (memory.size))
    (func (export "across") (param $at i32) (result i32) (local $before i32)
      (local.set $before (i32.load8_u (local.get $at)))
      (call $host)
      (i32.add (i32.mul (local.get $before) (i32.const 256)) (i32.load8_u (local.get $at))))
    (func (export "fill") (param i32) (memory.fill (i32.const 0) (local.get 0) (i32.mul (memory.size) (i32.const 65536)))))
  """

  @long """
  (module (memory (export "memory") i64 1)
    (func (export "load") (param i64) (result i32) (i32.load8_u (local.get 0)))
    (func (export "grow") (param i64) (result i64) (memory.grow (local.get 0))))
  """

  @kinds [[], [compact: true]]

  setup_all do
    %{modules: Map.new(@kinds, &{&1, Beamr.compile!(@guest, &1)})}
  end

  defp instance(module, host \\ fn _wasm -> :ok end),
    do: Beamr.instantiate!(module, imports: %{"host" => %{"call" => host}})

  defp trap(wasm, function, args) do
    {:error, %Beamr.Trap{reason: reason}} = Beamr.call(wasm, function, args)
    reason
  end

  describe "a memory" do
    test "keeps what it holds as it grows, and holds zeros beyond", %{modules: modules} do
      for kind <- @kinds do
        wasm = instance(modules[kind])

        # Sizes that fit where it lies, and sizes that do not: it moves several times.
        for pages <- [1, 1, 2, 3, 8, 1, 1, 16, 60] do
          {:ok, size} = IO.size(wasm)
          bytes = :crypto.strong_rand_bytes(size)
          :ok = IO.write(wasm, 0, bytes)
          assert Beamr.call!(wasm, "grow", [pages]) == [div(size, @page)]
          assert IO.size(wasm) == {:ok, size + pages * @page}
          assert IO.read(wasm, 0, size) == {:ok, bytes}
          assert IO.read(wasm, size, pages * @page) == {:ok, <<0::size(pages * @page)-unit(8)>>}
          assert Beamr.call!(wasm, "load", [size - 1]) == [:binary.last(bytes)]
          assert Beamr.call!(wasm, "load", [size + pages * @page - 1]) == [0]
        end
      end
    end

    test "ends where it ends, for the guest and the host", %{modules: modules} do
      for kind <- @kinds do
        wasm = instance(modules[kind])

        for pages <- [0, 1, 1, 5, 20, 80] do
          Beamr.call!(wasm, "grow", [pages])
          {:ok, size} = IO.size(wasm)
          assert Beamr.call!(wasm, "store", [size - 1, 7]) == []
          assert Beamr.call!(wasm, "load", [size - 1]) == [7]
          assert trap(wasm, "store", [size, 7]) == :memory_out_of_bounds
          assert trap(wasm, "load", [size]) == :memory_out_of_bounds
          assert trap(wasm, "load64", [size - 7]) == :memory_out_of_bounds
          assert Beamr.call!(wasm, "load64", [size - 8]) == [Bitwise.bsl(7, 56)]
          assert trap(wasm, "load", [0xFFFFFFFF]) == :memory_out_of_bounds
          assert trap(wasm, "far", [0]) == :memory_out_of_bounds
          assert trap(wasm, "far", [1]) == :memory_out_of_bounds
          assert {:error, _out_of_bounds} = IO.read(wasm, size, 1)
        end
      end
    end

    test "grows no further than its maximum and its limit", %{modules: modules} do
      for kind <- @kinds do
        wasm = instance(modules[kind])
        assert Beamr.call!(wasm, "grow", [200]) == [-1]
        assert Beamr.call!(wasm, "grow", [199]) == [1]
        assert Beamr.call!(wasm, "grow", [1]) == [-1]

        imports = %{"host" => %{"call" => fn _ -> :ok end}}
        limited = Beamr.instantiate!(modules[kind], imports: imports, max_memory: 3 * @page)
        assert Beamr.call!(limited, "grow", [3]) == [-1]
        assert Beamr.call!(limited, "grow", [2]) == [1]
        assert {:error, %Beamr.MemoryError{reason: :cannot_grow}} = IO.grow(limited, 1)
        assert IO.size(limited) == {:ok, 3 * @page}
      end
    end

    test "may have addresses of 64 bits" do
      for kind <- @kinds do
        wasm = @long |> Beamr.compile!(kind) |> Beamr.instantiate!()
        :ok = IO.write(wasm, @page - 1, <<9>>)
        assert Beamr.call!(wasm, "grow", [40]) == [1]
        assert Beamr.call!(wasm, "load", [@page - 1]) == [9]
        assert Beamr.call!(wasm, "load", [41 * @page - 1]) == [0]

        for at <- [41 * @page, 0x1_0000_0000, -1, 0x7FFFFFFFFFFFFFFF],
            do: assert(trap(wasm, "load", [at]) == :memory_out_of_bounds)
      end
    end

    test "may be longer than 4 GiB" do
      for kind <- @kinds do
        wasm = @long |> Beamr.compile!(kind) |> Beamr.instantiate!()
        :ok = IO.write(wasm, 5, "near")
        assert Beamr.call!(wasm, "grow", [65_534]) == [1]
        :ok = IO.write(wasm, 0xFFFE_FFFC, "far ")
        assert Beamr.call!(wasm, "grow", [2]) == [65_535]
        :ok = IO.write(wasm, 0x1_0000_FFFF, "!")
        assert Beamr.call!(wasm, "load", [0x1_0000_FFFF]) == [?!]
        assert trap(wasm, "load", [0x1_0001_0000]) == :memory_out_of_bounds
        assert Beamr.call!(wasm, "grow", [10]) == [65_537]
        assert IO.read(wasm, 5, 4) == {:ok, "near"}
        assert IO.read(wasm, 0xFFFE_FFFC, 4) == {:ok, "far "}
        assert IO.read(wasm, 0x1_0000_FFFF, 2) == {:ok, "!\0"}
        # More than there is: refused, and nothing is lost.
        assert Beamr.call!(wasm, "grow", [0x0FFF_FFFF_FFFF]) == [-1]
        assert IO.read(wasm, 5, 4) == {:ok, "near"}
        Beamr.close(wasm)
      end
    end

    test "may grow page by page, with others beside it", %{modules: modules} do
      for kind <- @kinds do
        wasms = for _ <- 1..3, do: instance(modules[kind])

        for page <- 1..150, {wasm, n} <- Enum.with_index(wasms, 1) do
          :ok = IO.write(wasm, (page - 1) * @page, <<n, page>>)
          assert Beamr.call!(wasm, "grow", [1]) == [page]
        end

        for {wasm, n} <- Enum.with_index(wasms, 1), page <- 1..150 do
          assert IO.read(wasm, (page - 1) * @page, 3) == {:ok, <<n, page, 0>>}
        end
      end
    end

    test "is one of several" do
      source = """
      (module (memory $a (export "a") 1) (memory $b (export "b") 2)
        (func (export "copy") (memory.copy $a $b (i32.const 10) (i32.const 131000) (i32.const 72)))
        (func (export "grow") (drop (memory.grow $b (i32.const 30)))))
      """

      for kind <- @kinds do
        wasm = source |> Beamr.compile!(kind) |> Beamr.instantiate!()
        bytes = :crypto.strong_rand_bytes(72)
        :ok = IO.write(wasm, 131_000, bytes, memory: "b")
        Beamr.call!(wasm, "grow", [])
        Beamr.call!(wasm, "copy", [])
        assert IO.read(wasm, 10, 72, memory: "a") == {:ok, bytes}
        assert IO.size(wasm, memory: "a") == {:ok, @page}
        assert IO.size(wasm, memory: "b") == {:ok, 32 * @page}
      end
    end

    test "may be imported" do
      source = """
      (module (import "env" "memory" (memory 1 50))
        (func (export "store") (param i32 i32) (i32.store8 (local.get 0) (local.get 1)))
        (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0)))
        (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))
      """

      for kind <- @kinds do
        imports = %{"env" => %{"memory" => {:memory, 2, 50}}}
        wasm = source |> Beamr.compile!(kind) |> Beamr.instantiate!(imports: imports)
        Beamr.call!(wasm, "store", [2 * @page - 1, 5])
        assert Beamr.call!(wasm, "grow", [48]) == [2]
        assert Beamr.call!(wasm, "load", [2 * @page - 1]) == [5]
        assert trap(wasm, "load", [50 * @page]) == :memory_out_of_bounds
        assert Beamr.call!(wasm, "grow", [1]) == [-1]
      end
    end
  end

  describe "a memory that moves in the middle of a call" do
    test "is found by the guest that goes on", %{modules: modules} do
      for kind <- @kinds, pages <- [1, 3, 40] do
        # By the guest itself, in a nested call, and by the host.
        for grow <- [&Beamr.call!(&1, "grow", [pages]), &IO.grow!(&1, pages)] do
          host = fn wasm ->
            grow.(wasm)
            :ok = IO.write(wasm, 100, <<0xCD>>)
          end

          wasm = instance(modules[kind], host)
          :ok = IO.write(wasm, 100, <<0xAB>>)
          assert Beamr.call!(wasm, "across", [100]) == [0xABCD]
        end
      end
    end

    test "is found by those who read and write it meanwhile", %{modules: modules} do
      for kind <- @kinds do
        host = fn wasm ->
          view = View.new!(wasm, 50, 10)
          :ok = View.write(view, 0, "0123456789")

          for pages <- [1, 2, 4, 60] do
            Beamr.call!(wasm, "grow", [pages])
            assert View.read(view, 0, 10) == {:ok, "0123456789"}
            {:ok, size} = IO.size(wasm)
            other = Task.async(fn -> IO.write(wasm, size - 4, "last") end)
            assert Task.await(other) == :ok
            assert IO.read_string(wasm, size - 4) == IO.read_string(wasm, size - 4)
            assert Beamr.call!(wasm, "load", [size - 1]) == [?t]
          end
        end

        wasm = instance(modules[kind], host)
        Beamr.call!(wasm, "across", [0])
        assert IO.read(wasm, 50, 10) == {:ok, "0123456789"}
      end
    end
  end

  describe "while the guest's garbage is collected" do
    @collecting """
    (module
      (type $cell (struct (field i64) (field i64) (field i64) (field i64)))
      (import "host" "call" (func $host))
      (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
      (memory (export "memory") 1 200)
      (func (export "churn_after_wasi") (param i32 i32) (result i32)
        (drop (call $yield))
        (call $work (local.get 0) (local.get 1)))
      (func (export "churn") (param i32 i32) (result i32)
        (call $host)
        (call $work (local.get 0) (local.get 1)))
      (func $work (param $pages i32) (param $cells i32) (result i32)
        (drop (memory.grow (local.get $pages)))
        (loop $next
          (drop (struct.new $cell (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4)))
          (br_if $next
            (local.tee $cells (i32.sub (local.get $cells) (i32.const 1)))))
        (memory.size)))
    """

    # The memory has moved since the import, and others have what was its place.
    test "nobody reaches where the memory was" do
      for kind <- @kinds, pages <- [3, 40], churn <- ["churn", "churn_after_wasi"] do
        module = Beamr.compile!(@collecting, kind)
        imports = %{"host" => %{"call" => fn _wasm -> :ok end}}
        make = fn -> Beamr.instantiate!(module, imports: imports, wasi: true) end
        wasm = make.()
        :ok = IO.write(wasm, 0, :binary.copy("A", @page))

        others = [
          spawn_loop(fn -> assert IO.read(wasm, 100, 8) == {:ok, "AAAAAAAA"} end),
          spawn_loop(fn -> :ok = IO.write(wasm, 200, "written") end),
          spawn_loop(fn ->
            other = make.()
            assert IO.read(other, 0, @page) == {:ok, <<0::@page*8>>}
            :ok = IO.write(other, 0, :binary.copy("B", @page))
          end)
        ]

        for _ <- 1..4 do
          assert [_size] = Beamr.call!(wasm, churn, [pages, 200_000], timeout: :infinity)
        end

        Enum.each(others, &stop_loop/1)
        assert IO.read(wasm, 200, 8) == {:ok, "writtenA"}
        Beamr.close(wasm)
      end
    end

    defp spawn_loop(function) do
      stop = :atomics.new(1, [])
      {stop, Task.async(fn -> loop(function, stop) end)}
    end

    defp loop(function, stop) do
      function.()
      if :atomics.get(stop, 1) == 0, do: loop(function, stop)
    end

    defp stop_loop({stop, task}) do
      :atomics.put(stop, 1, 1)
      Task.await(task, :infinity)
    end
  end

  describe "what a memory leaves behind" do
    test "nobody finds", %{modules: modules} do
      for kind <- @kinds, _ <- 1..20 do
        # Short ones and long ones, as they were made and grown.
        for pages <- [0, 1, 0, 7, 40] do
          wasm = instance(modules[kind])
          assert IO.read(wasm, 0, @page) == {:ok, <<0::@page*8>>}
          assert trap(wasm, "load", [@page]) == :memory_out_of_bounds
          Beamr.call!(wasm, "grow", [pages])
          assert IO.read(wasm, @page, pages * @page) == {:ok, <<0::size(pages * @page)-unit(8)>>}
          Beamr.call!(wasm, "fill", [0xEE])
          :ok = Beamr.close(wasm)
        end
      end
    end

    # More at a time than keep their physical memory, and than are kept.
    test "nobody finds where there are many", %{modules: modules} do
      for kind <- @kinds, count <- [300, 1_200] do
        for pages <- [0, 2] do
          instances = for _ <- 1..count, do: instance(modules[kind])

          for wasm <- instances do
            assert IO.read(wasm, 0, @page) == {:ok, <<0::@page*8>>}
            assert trap(wasm, "load", [@page]) == :memory_out_of_bounds
            Beamr.call!(wasm, "grow", [pages])
            Beamr.call!(wasm, "fill", [0xEE])
          end

          Enum.each(instances, &Beamr.close/1)
        end
      end
    end

    test "is no address space that others lack" do
      # Each reserves as much as it could address, and a page of it is touched.
      for pages <- [1, 300_000, 500_000, 524_289, 600_000], _ <- 1..40 do
        source = ~s|(module (memory (export "memory") i64 1)
          (func (export "grow") (param i64) (result i64) (memory.grow (local.get 0))))|

        wasm = Beamr.instantiate!(source)
        [before] = Beamr.call!(wasm, "grow", [pages])
        assert before == 1 or (before == -1 and pages > 524_287)
        :ok = IO.write(wasm, 0, "touched")
        :ok = Beamr.close(wasm)
      end

      wasm = Beamr.instantiate!(~s|(module (memory (export "memory") i64 600000))|)
      assert IO.size(wasm) == {:ok, 600_000 * @page}
      Beamr.close(wasm)
    end

    test "is no data of another module" do
      for kind <- @kinds, length <- [10, 40_000] do
        source = fn byte ->
          data = String.duplicate("\\#{Base.encode16(<<byte>>)}", length)
          ~s|(module (memory (export "memory") 2) (data (i32.const 1000) "#{data}"))|
        end

        modules = for byte <- 1..3, do: {byte, Beamr.compile!(source.(byte), kind)}

        for _ <- 1..10, {byte, module} <- modules do
          wasm = Beamr.instantiate!(module)

          assert {:ok, <<0::8000, data::binary-size(length), 0>>} =
                   IO.read(wasm, 0, 1001 + length)

          assert data == :binary.copy(<<byte>>, length)
          :ok = IO.write(wasm, 0, :binary.copy(<<0xFF>>, 2 * @page))
          # An instance that is let go of is as good as one that is closed.
          if byte == 2, do: :erlang.garbage_collect(), else: Beamr.close(wasm)
        end
      end
    end

    test "is never seen by processes that come and go", %{modules: modules} do
      for kind <- @kinds do
        1..50
        |> Task.async_stream(
          fn n ->
            for _ <- 1..20 do
              wasm = instance(modules[kind])
              assert IO.read(wasm, 0, @page) == {:ok, <<0::@page*8>>}
              Beamr.call!(wasm, "fill", [n])
              Beamr.call!(wasm, "grow", [rem(n, 3)])
              assert IO.read(wasm, 0, @page) == {:ok, :binary.copy(<<n>>, @page)}
              if rem(n, 2) == 0, do: Beamr.close(wasm)
            end
          end,
          max_concurrency: 16
        )
        |> Stream.run()
      end
    end
  end

  describe "compact: true" do
    test "runs WASI programs" do
      module = Beamr.compile_file!(Path.expand("../guests/wasi.wasm", __DIR__), compact: true)
      text = Enum.map_join(1..20_000, "\n", &"line #{&1}")
      {:ok, input} = StringIO.open(text)
      stdin = fn -> :file.read(input, 3_000) |> then(&with({:ok, piece} <- &1, do: piece)) end
      wasi = [args: ["wasi", "cat"], stdin: stdin, stdout: :buffer]
      wasm = Beamr.instantiate!(module, wasi: wasi)
      assert Beamr.call(wasm, "_start", []) == {:ok, []}
      assert Beamr.WASI.take_output(wasm, :stdout) == text
    end

    test "holds references to terms" do
      source = """
      (module (table $t (export "t") 10 externref)
        (func (export "keep") (param i32 externref) (table.set $t (local.get 0) (local.get 1)))
        (func (export "kept") (param i32) (result externref) (table.get $t (local.get 0))))
      """

      wasm = source |> Beamr.compile!(compact: true) |> Beamr.instantiate!()

      for round <- 1..2_000 do
        Beamr.call!(wasm, "keep", [rem(round, 10), {:round, round, make_ref()}])
        assert [{:round, ^round, _}] = Beamr.call!(wasm, "kept", [rem(round, 10)])
      end
    end

    # More than there is address space for if each reserves what a memory can address.
    test "has room for forty thousand with a memory, used all of them", %{modules: modules} do
      module = modules[[compact: true]]
      instances = for n <- 1..40_000, do: {n, instance(module)}
      for {n, wasm} <- instances, do: :ok = IO.write_i32(wasm, 0, n)
      for {n, wasm} <- instances, do: assert(IO.read_i32(wasm, 0) == {:ok, n})

      for {n, wasm} <- Enum.take(instances, 2_000),
          do: [_] = Beamr.call!(wasm, "load", [rem(n, 4)])

      for {_n, wasm} <- instances, do: :ok = Beamr.close(wasm)
    end
  end
end
