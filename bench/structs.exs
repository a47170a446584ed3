# What does a struct cost, next to reads that are written by hand, and an allocation, next to a
# GenServer.call?
#
#     mix run bench/structs.exs

Code.require_file("measure.exs", __DIR__)

defmodule Bench.Structs.Person do
  use Beamr.Struct

  layout do
    field :id, :u32
    field :age, :u8
    field :score, :f64
    field :x, :f32
    field :y, :f32
    field :flags, :u16
  end
end

defmodule Bench.Structs.Echo do
  use GenServer

  def init(state), do: {:ok, state}
  def handle_call(request, _from, state), do: {:reply, request, state}
end

defmodule Bench.Structs do
  import Bench.Measure
  alias Beamr.Allocator
  alias Bench.Structs.{Echo, Person}

  @pointer 1024

  def run do
    wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 4))|)
    structs(wasm)
    allocators(wasm)
  end

  defp structs(wasm) do
    header("Structs of six fields")
    person = %Person{id: 1, age: 40, score: 0.5, x: 1.5, y: -1.5, flags: 3}
    Person.write!(wasm, @pointer, person)

    plain = Beamr.Struct.new(id: :u32, age: :u8, score: :f64, x: :f32, y: :f32, flags: :u16)

    map = Map.from_struct(person)
    read = fn -> Person.read(wasm, @pointer) end
    ^person = read_and_match(wasm)
    ^person = one_by_one(wasm)

    compare("read", read, "read and match", fn -> read_and_match(wasm) end)
    compare("read", read, "read each field", fn -> one_by_one(wasm) end)
    by_plain = fn -> Beamr.Struct.read(wasm, @pointer, plain) end
    compare("read by new/2", by_plain, "read and match", fn -> read_and_match(wasm) end)

    write = fn -> Person.write(wasm, @pointer, person) end
    compare("write", write, "build and write", fn -> build_and_write(wasm, person) end)
    by_plain = fn -> Beamr.Struct.write(wasm, @pointer, plain, map) end

    compare("write by new/2", by_plain, "build and write", fn -> build_and_write(wasm, person) end)

    update = fn -> Person.update(wasm, @pointer, %{age: 41, flags: 4}) end
    compare("update two fields", update, "write", write)

    Person.write_array!(wasm, @pointer, List.duplicate(person, 1000))
    array = fn -> Person.read_array(wasm, @pointer, 1000) end
    compare("read 1000", array, "read and match", fn -> match_all(wasm, 1000) end)
  end

  defp read_and_match(wasm) do
    {:ok,
     <<id::little-32, age, _::binary-3, score::little-float-64, x::little-float-32,
       y::little-float-32, flags::little-16, _::binary>>} = Beamr.IO.read(wasm, @pointer, 32)

    %Person{id: id, age: age, score: score, x: x, y: y, flags: flags}
  end

  defp match_all(wasm, count) do
    {:ok, bytes} = Beamr.IO.read(wasm, @pointer, 32 * count)

    for <<id::little-32, age, _::binary-3, score::little-float-64, x::little-float-32,
          y::little-float-32, flags::little-16, _::binary-6 <- bytes>> do
      %Person{id: id, age: age, score: score, x: x, y: y, flags: flags}
    end
  end

  defp one_by_one(wasm) do
    %Person{
      id: Beamr.IO.read_u32!(wasm, @pointer),
      age: Beamr.IO.read_u8!(wasm, @pointer + 4),
      score: Beamr.IO.read_f64!(wasm, @pointer + 8),
      x: Beamr.IO.read_f32!(wasm, @pointer + 16),
      y: Beamr.IO.read_f32!(wasm, @pointer + 20),
      flags: Beamr.IO.read_u16!(wasm, @pointer + 24)
    }
  end

  defp build_and_write(wasm, person) do
    bytes =
      <<person.id::little-32, person.age, 0::24, person.score::little-float-64,
        person.x::little-float-32, person.y::little-float-32, person.flags::little-16, 0::48>>

    Beamr.IO.write(wasm, @pointer, bytes)
  end

  defp allocators(wasm) do
    header("Allocators")
    {:ok, echo} = GenServer.start_link(Echo, nil)
    call = fn -> GenServer.call(echo, :echo) end

    stack = Allocator.Stack.new!(wasm, base: 0, size: 1024)
    bump = Allocator.Bump.new!(wasm, base: 1024, records: false)

    # Each resets before it needs memory of its own.
    alloc = fn allocator ->
      fn -> Allocator.alloc!(allocator, 16) && Allocator.reset!(allocator) end
    end

    two = fn -> call.() && call.() end
    compare("bump alloc and reset", alloc.(bump), "two GenServer.calls", two)
    compare("stack alloc and reset", alloc.(stack), "two GenServer.calls", two)

    mark = fn ->
      Allocator.Stack.mark!(stack) && Allocator.alloc!(stack, 16) && Allocator.Stack.pop!(stack)
    end

    compare("stack mark, alloc, pop", mark, "two GenServer.calls", two)
    compare("reset", fn -> Allocator.reset(bump) end, "GenServer.call", call)
    Allocator.close(bump)

    # One byte each, so that memory is not what is measured.
    bump = Allocator.Bump.new!(wasm, base: 1024, records: false)
    compare("bump alloc", fn -> Allocator.alloc!(bump, 1, align: 1) end, "GenServer.call", call)
    Allocator.close(bump)
    bump = Allocator.Bump.new!(wasm, base: 1024)

    compare(
      "bump alloc, recorded",
      fn -> Allocator.alloc!(bump, 1, align: 1) end,
      "GenServer.call",
      call
    )

    Allocator.close(bump)

    compare(
      "make and close",
      fn -> wasm |> Allocator.Bump.new!(base: 2 ** 20) |> Allocator.close() end,
      "GenServer.call",
      call
    )
  end
end

Bench.Structs.run()
